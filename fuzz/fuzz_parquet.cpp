// Parquet: footer, pages, every column of text.
#include "data/parquet.h"
#include "fuzz_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    const ParquetFile file = parse_parquet(bytes, "fuzz.parquet");
    for (const ParquetColumnInfo& info : file.columns) {
      if (!info.text) continue;
      ParquetColumn column(file, info.name);
      std::optional<std::string_view> value;
      // A run may stand for any number of rows.
      for (int i = 0; i < 1000 && column.next(value); i++)
        if (value) fuzz::touch(std::as_bytes(std::span(*value)));
    }
  });
  return 0;
}
