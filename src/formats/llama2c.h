// llama2.c's files: the model .bin (the unversioned layout and version 1, both FP32) and tok*.bin.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "formats/checkpoint.h"
#include "text/vocab.h"

namespace tinyllama {

// Names the tensors of a model .bin; views point into `bytes`. The vocabulary is not in the file.
// Throws Error when the header is out of bounds or the file's size is not exactly what the header
// asks for.
Checkpoint parse_llama2c(std::span<const std::byte> bytes, std::string_view where);

// Reads tok*.bin: pieces and scores. Its format has no types: ids 0, 1, 2 are unk, bos and eos, and
// "<0x41>" is a byte.
Vocab parse_llama2c_vocab(std::span<const std::byte> bytes, std::string_view where);

}  // namespace tinyllama
