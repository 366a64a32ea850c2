// Checkpoints of a run: whole or absent, found again after any accident.
#include "train/checkpoints.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "support/assets.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;
using namespace testing;

TrainingCounters counters_of(int64_t step) {
  return {step, static_cast<uint64_t>(step) * 12, 3407, "avx2", "plan 1"};
}

// A model folder as its writer makes it: atomically, in place of what is there.
void write_model(const std::string& path, int64_t step, size_t bytes = 1000) {
  AtomicFolder folder(path);
  for (const char* name : {"config.json", "model.safetensors"}) {
    AtomicFile file(folder.path() + "/" + name);
    file.write(std::string(bytes, static_cast<char>('a' + step % 26)));
    file.commit();
  }
  folder.commit();
}

std::vector<float> moments_of(int64_t step) {
  return std::vector<float>(5000, static_cast<float>(step));
}

void save(Checkpoints& checkpoints, int64_t step, size_t bytes = 1000) {
  const std::vector<float> m = moments_of(step);
  const std::vector<StateArray> arrays = {{"m", std::as_bytes(std::span(m))},
                                          {"empty", {}},
                                          {"v", std::as_bytes(std::span(m).first(7))}};
  checkpoints.save(counters_of(step), arrays,
                   [&](const std::string& path) { write_model(path, step, bytes); });
}

class CheckpointsTest : public ::testing::Test {
 protected:
  std::string run() const { return folder_ / "run"; }
  // The step that would be resumed from, -1 for none, and in warnings_ what was said.
  int64_t resumed() {
    warnings_.clear();
    const Checkpoints checkpoints(run(), 3);
    const auto found =
        checkpoints.newest([&](std::string_view text) { warnings_.emplace_back(text); });
    if (!found) return -1;
    const int64_t step = found->state->counters().step;
    EXPECT_EQ(found->state->counters(), counters_of(step));
    const std::vector<float> want = moments_of(step);
    const auto bytes = found->state->array("m", want.size() * sizeof(float));
    EXPECT_TRUE(std::ranges::equal(bytes, std::as_bytes(std::span(want))));
    EXPECT_EQ(found->state->array("v", 28).size(), 28u);
    EXPECT_EQ(found->state->array("empty", 0).size(), 0u);
    EXPECT_THROW((void)found->state->array("m", 4), Error);
    EXPECT_THROW((void)found->state->array("w", 4), Error);
    return step;
  }
  // Flips a byte.
  void damage(const std::string& path, size_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte);
  }

  TemporaryFolder folder_;
  std::vector<std::string> warnings_;
};

TEST_F(CheckpointsTest, SavesRotatesAndFinds) {
  EXPECT_EQ(resumed(), -1);
  Checkpoints checkpoints(run(), 2);
  for (const int64_t step : {20, 40, 60}) {
    save(checkpoints, step);
    EXPECT_EQ(fs::read_symlink(run() + "/last"), fs::path(checkpoints.path(step)).filename());
  }
  EXPECT_EQ(checkpoints.steps(), (std::vector<int64_t>{40, 60}));
  EXPECT_TRUE(fs::exists(run() + "/last/config.json"));
  EXPECT_TRUE(fs::exists(run() + "/step-00000060/training_state.bin"));
  EXPECT_EQ(resumed(), 60);
  EXPECT_TRUE(warnings_.empty());
  // As numbers, not as texts.
  save(checkpoints, 99999999);
  save(checkpoints, 100000000);
  EXPECT_EQ(resumed(), 100000000);
  // Nothing but checkpoints and the link.
  for (const auto& entry : fs::directory_iterator(run()))
    EXPECT_EQ(entry.path().string().find("partial"), std::string::npos) << entry.path();
}

// Killed between the two renames that put a checkpoint in place of another of its step.
TEST_F(CheckpointsTest, WhatSteppedAsideComesBack) {
  {
    Checkpoints checkpoints(run(), 1);
    save(checkpoints, 10);
    save(checkpoints, 10);
    EXPECT_EQ(checkpoints.steps(), (std::vector<int64_t>{10}));
  }
  fs::rename(run() + "/step-00000010", run() + "/step-00000010.77.partial.old");
  fs::create_directory(run() + "/step-00000010.77.partial");
  fs::create_directory(run() + "/step-00000020.77.partial.77.partial.old");
  EXPECT_EQ(resumed(), 10);
  EXPECT_EQ(Checkpoints(run(), 1).steps(), (std::vector<int64_t>{10}));
}

TEST_F(CheckpointsTest, DamagedOnesArePassedOver) {
  Checkpoints checkpoints(run(), 3);
  for (const int64_t step : {10, 20, 30}) save(checkpoints, step);
  damage(run() + "/step-00000030/model.safetensors", 500);
  EXPECT_EQ(resumed(), 20);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("step-00000030/model.safetensors"), std::string::npos);
  fs::remove(run() + "/step-00000020/training_state.bin");
  EXPECT_EQ(resumed(), 10);
  EXPECT_EQ(warnings_.size(), 2u);
  // Going on from 10 leaves the damaged later ones behind.
  save(checkpoints, 15);
  EXPECT_EQ(checkpoints.steps(), (std::vector<int64_t>{10, 15}));
  EXPECT_EQ(resumed(), 15);
  // Another's name.
  fs::rename(run() + "/step-00000015", run() + "/step-00000016");
  EXPECT_EQ(resumed(), 10);
}

TEST_F(CheckpointsTest, EveryByteAndLengthOfAStateIsChecked) {
  const std::string path = folder_ / "state.bin";
  const std::vector<float> m = {1, 2, 3};
  const std::vector<StateArray> arrays = {{"m", std::as_bytes(std::span(m))}};
  write_training_state(path, counters_of(5), arrays, {});
  const TrainingState whole(path);
  const size_t size = fs::file_size(path);
  const size_t padding_begin = 8, padding_end = 64;
  for (size_t at = 0; at < size; at++) {
    damage(path, at);
    if (at < padding_begin || at >= padding_end) {
      EXPECT_THROW(TrainingState{path}, Error) << at;
    }
    damage(path, at);
  }
  EXPECT_NO_THROW(TrainingState{path});
  for (size_t length = size; length-- > 0;) {
    fs::resize_file(path, length);
    EXPECT_THROW(TrainingState{path}, Error) << length;
  }
}

TEST_F(CheckpointsTest, AFullDiskLosesNothing) {
  Checkpoints checkpoints(run(), 1);
  save(checkpoints, 10);
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  // At the model, and at the state, which is larger.
  for (const rlim_t limit : {500, 15000}) {
    const rlimit small = {limit, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    EXPECT_THROW(save(checkpoints, 20), Error);
    ::setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_EQ(checkpoints.steps(), (std::vector<int64_t>{10}));
    EXPECT_EQ(resumed(), 10);
    EXPECT_TRUE(warnings_.empty());
  }
  std::signal(SIGXFSZ, old_handler);
  save(checkpoints, 20);
  EXPECT_EQ(resumed(), 20);
}

// A child saves one checkpoint after the other and is killed at some moment, again and again: the
// newest is never older than the last that was announced, never damaged, and no litter stays.
TEST_F(CheckpointsTest, KilledAtAnyMoment) {
  // How long a save takes depends on the disk.
  const auto start = std::chrono::steady_clock::now();
  {
    Checkpoints checkpoints(run(), 2);
    save(checkpoints, 0);
  }
  const auto one_save = std::chrono::steady_clock::now() - start;
  constexpr int kRounds = 20;
  int64_t last = 0;
  for (int round = 0; round < kRounds; round++) {
    int announce[2];
    ASSERT_EQ(::pipe(announce), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Checkpoints checkpoints(run(), 2);
      for (int64_t step = last + 1;; step++) {
        save(checkpoints, step);
        if (::write(announce[1], &step, sizeof step) != sizeof step) ::_exit(1);
      }
    }
    ::close(announce[1]);
    // Anywhere in the first three saves.
    std::this_thread::sleep_for(one_save * 3 * (round * 7 % kRounds + 1) / kRounds);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    int64_t announced = last;
    for (int64_t step = 0; ::read(announce[0], &step, sizeof step) == sizeof step;)
      announced = step;
    ::close(announce[0]);
    const int64_t found = resumed();
    EXPECT_GE(found, announced);
    EXPECT_LE(found, announced + 1);
    EXPECT_TRUE(warnings_.empty()) << warnings_.front();
    EXPECT_TRUE(fs::exists(run() + "/last/config.json"));
    for (const auto& entry : fs::directory_iterator(run()))
      EXPECT_EQ(entry.path().string().find("partial"), std::string::npos) << entry.path();
    last = found;
  }
  EXPECT_GT(last, 5);
}

}  // namespace
}  // namespace tinyllama
