// base/: files that appear only when complete, a pool that runs every item once and survives
// exceptions.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <numeric>

#include "base/cpu_info.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "support/assets.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

using testing::TemporaryFolder;

TEST(AtomicFile, AppearsOnlyOnCommit) {
  const TemporaryFolder folder;
  const std::string path = folder / "file";
  {
    AtomicFile file(path);
    file.write("abandoned");
  }
  EXPECT_FALSE(fs::exists(path));
  {
    AtomicFile file(path);
    file.write("abc");
    file.pad_to(8);
    file.write("d");
    EXPECT_EQ(file.position(), 9u);
    EXPECT_FALSE(fs::exists(path));
    file.commit();
  }
  EXPECT_EQ(read_text_file(path), std::string("abc\0\0\0\0\0d", 9));
  EXPECT_EQ(std::distance(fs::directory_iterator(fs::path(path).parent_path()), {}), 1);
}

TEST(AtomicFolder, ReplacesTheOldOneWhole) {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  for (const char* name : {"first", "second"}) {
    AtomicFolder out(path);
    AtomicFile file(out.path() + "/" + name);
    file.write(name);
    file.commit();
    out.commit();
  }
  EXPECT_FALSE(fs::exists(path + "/first"));
  EXPECT_EQ(read_text_file(path + "/second"), "second");
}

TEST(MappedFile, NamesThePathItCannotOpen) {
  try {
    MappedFile file("/nonexistent/model.gguf");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/nonexistent/model.gguf"), std::string::npos);
  }
  EXPECT_THROW(MappedFile("/tmp"), Error);
}

TEST(ThreadPool, RunsEveryItemOnceForAnyThreadCount) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const int64_t n : {0, 1, 2, 17, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      pool.for_each(n, [&](int64_t i) { seen[static_cast<size_t>(i)]++; });
      pool.for_ranges(n, 16, [&](int64_t a, int64_t b) {
        EXPECT_EQ(a % 16, 0);
        for (int64_t i = a; i < b; i++) seen[static_cast<size_t>(i)]++;
      });
      for (const auto& count : seen) EXPECT_EQ(count, 2);
    }
  }
}

// A worker that keeps joins waiting is left out for a while; whoever takes part, each item runs
// once, and run() still reaches every thread.
TEST(ThreadPool, LateWorkersChangeNothing) {
  ThreadPool pool(3);
  for (int round = 0; round < 60; round++) {
    std::vector<std::atomic<int>> seen(40);
    std::atomic<bool> in_range{true};
    pool.for_each(40, [&](int64_t i, int thread) {
      seen[static_cast<size_t>(i)]++;
      if (thread < 0 || thread >= 3) in_range = false;
      if (round % 3 == 0 && thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    for (const auto& count : seen) EXPECT_EQ(count, 1);
    EXPECT_TRUE(in_range);
    std::atomic<int> threads{0};
    pool.run([&](int thread) { threads += 1 << thread; });
    EXPECT_EQ(threads, 7);
  }
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run([](int thread) {
    if (thread == 2) fail("[test] thrown on a worker");
  }),
               Error);
  std::atomic<int> sum{0};
  pool.run([&](int thread) { sum += thread; });
  EXPECT_EQ(sum, 3);
}

TEST(Rng, KnownAnswers) {
  // SplitMix64 seeded with 0: its first output, from the reference implementation.
  EXPECT_EQ(splitmix64(0), 0xE220A8397B1DCDAFull);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_NE(hash_key(1, 2), hash_key(2, 1));
}

TEST(CpuInfo, AtLeastOneCore) {
  EXPECT_GE(available_cores(), 1);
}

}  // namespace
}  // namespace tinyllama
