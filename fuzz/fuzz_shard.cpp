// Token shards: ours, LITPKDS and llm.c's.
#include <sys/mman.h>
#include <unistd.h>

#include "data/shard.h"
#include "fuzz_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  static const int fd = ::memfd_create("shard", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, bytes.data(), bytes.size(), 0) < 0)
      fail("no memory file");
    const TokenShard shard(path);
    fuzz::touch(std::as_bytes(shard.documents()));
    shard.verify();
  });
  return 0;
}
