// `tinyllama quantize`: a model as a smaller GGUF file.
#include "quantize/quantize.h"

#include <filesystem>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"
