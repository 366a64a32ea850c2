// The text formats of corpora, compressed or not. The first byte says which: t, l, j or c.
#include <sys/mman.h>
#include <unistd.h>

#include "data/corpus.h"
#include "fuzz_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  static const int fd = ::memfd_create("rows", 0);
  if (size == 0) return 0;
  fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    const auto body = bytes.subspan(1);
    if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, body.data(), body.size(), 0) < 0 ||
        ::lseek(fd, 0, SEEK_SET) != 0)
      fail("no memory file");
    CorpusOptions options;
    options.standard_input = fd;
    switch (static_cast<char>(bytes.front())) {
      case 'l':
        options.format = CorpusFormat::jsonl;
        break;
      case 'j':
        options.format = CorpusFormat::json;
        break;
      case 'c':
        options.format = CorpusFormat::csv;
        break;
      default:
        options.format = CorpusFormat::text;
        options.separator = "---";
    }
    if (options.format == CorpusFormat::json) options.filters = {{"meta.set", "x", false}};
    const auto use = [](std::string_view text) { fuzz::touch(std::as_bytes(std::span(text))); };
    for_documents(list_corpus({"-"}, options), options, use, {});
  });
  return 0;
}
