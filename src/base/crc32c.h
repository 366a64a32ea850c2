// CRC-32C (Castagnoli), the checksum of TensorBoard's records and of training states.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace tinyllama {

// The checksum of what `crc` is the checksum of, followed by `bytes`; 0 is that of nothing.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);
uint32_t crc32c(std::string_view bytes, uint32_t crc = 0);

}  // namespace tinyllama
