// What a training run leaves behind for people: metrics.jsonl, TensorBoard's
// events, and the page of curves.
#include "train/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/file.h"
#include "support/assets.h"
#include "train/plot.h"
#include "train/tensorboard.h"

namespace tinyllama {
namespace {

using namespace testing;

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

StepMetrics step(int64_t n, int64_t run = 0) {
  return {n, 2.5 / static_cast<double>(n), 4e-4, 1.25, 1e6 / 3, run};
}

TEST(Crc32c, KnownVectors) {  // RFC 3720, appendix B.4
  EXPECT_EQ(crc32c(std::string_view()), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string counting(32, '\0');
  std::iota(counting.begin(), counting.end(), '\0');
  EXPECT_EQ(crc32c(counting), 0x46DD794Eu);
  for (size_t cut = 0; cut <= counting.size(); cut++)
    EXPECT_EQ(crc32c(counting.substr(cut), crc32c(counting.substr(0, cut))), 0x46DD794Eu);
}

TEST(Metrics, AnObjectAStep) {
  const TemporaryFolder folder;
  {
    MetricsFile file(folder / "metrics.jsonl", 0);
    EXPECT_EQ(file.run(), 0);
    file.write(step(1));
    StepMetrics second = step(2);
    second.grad_norm = std::nan("");
    second.validation_loss = 1.5;
    file.write(second);
    file.sync();
  }
  EXPECT_EQ(read_text_file(folder / "metrics.jsonl"),
            "{\"step\":1,\"loss\":2.5,\"lr\":0.0004,\"grad_norm\":1.25,"
            "\"tokens_per_s\":333333.3333333333,\"run\":0}\n"
            "{\"step\":2,\"loss\":1.25,\"lr\":0.0004,\"grad_norm\":null,"
            "\"tokens_per_s\":333333.3333333333,\"run\":0,\"validation_loss\":1.5}\n");
  const auto read = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].tokens_per_s, 1e6 / 3);
  EXPECT_TRUE(std::isnan(read[1].grad_norm));
  EXPECT_EQ(read[1].validation_loss, 1.5);
}

TEST(Metrics, AreCutBackOnResume) {
  const TemporaryFolder folder;
  const std::string path = folder / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    for (int n = 1; n <= 10; n++) file.write(step(n));
  }
  {
    MetricsFile file(path, 7);
    EXPECT_EQ(file.run(), 1);
    file.write(step(8, file.run()));
  }
  auto read = read_metrics(path);
  ASSERT_EQ(read.size(), 8u);
  EXPECT_EQ(read[6].run, 0);
  EXPECT_EQ(read[7].run, 1);

  // A torn last line goes; readers leave it out.
  const std::string whole = read_text_file(path);
  write_text(path, whole + "{\"step\":9,\"lo");
  EXPECT_EQ(read_metrics(path).size(), 8u);
  { EXPECT_EQ(MetricsFile(path, 8).run(), 2); }
  EXPECT_EQ(read_text_file(path), whole);

  // Nothing to go on from: everything goes, the count stays.
  { EXPECT_EQ(MetricsFile(path, 0).run(), 2); }
  EXPECT_EQ(read_text_file(path), "");

  write_text(path, "{\"step\":1,\"lo");
  { EXPECT_EQ(MetricsFile(path, 8).run(), 0); }
  EXPECT_EQ(read_text_file(path), "");
}

TEST(Metrics, AnotherFileIsNotTouched) {
  const TemporaryFolder folder;
  const std::string path = folder / "diary.txt";
  for (const char* text : {"Dear diary,\n", "no line break", "{}\n", "[1]\n", "\n"}) {
    write_text(path, text);
    EXPECT_THROW(MetricsFile(path, 0), Error) << text;
    EXPECT_EQ(read_text_file(path), text);
  }
  EXPECT_THROW(read_metrics(folder / "absent"), Error);
  EXPECT_THROW(MetricsFile(folder / "no/folder", 0), Error);
}

TEST(Metrics, AFullDiskLeavesWholeRecords) {
  const TemporaryFolder folder;
  AppendFile file(folder / "log", 0);
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {100, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  file.append(std::string(60, 'a'));
  EXPECT_THROW(file.append(std::string(60, 'b')), Error);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(read_text_file(folder / "log"), std::string(60, 'a'));
  file.append("c");
  EXPECT_EQ(read_text_file(folder / "log"), std::string(60, 'a') + "c");
}

// A reader of our own: records, then the fields of Event that we write.
struct Event {
  double time = 0;
  int64_t step = 0;
  std::string version;
  bool start = false;
  std::vector<std::pair<std::string, float>> scalars;
};

template <class T>
T take(std::string_view& from) {
  T value;
  EXPECT_GE(from.size(), sizeof value);
  std::memcpy(&value, from.data(), sizeof value);
  from.remove_prefix(sizeof value);
  return value;
}

uint64_t take_varint(std::string_view& from) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<uint8_t>(from);
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
}

std::string_view take_bytes(std::string_view& from) {
  const uint64_t n = take_varint(from);
  EXPECT_LE(n, from.size());
  const std::string_view bytes = from.substr(0, n);
  from.remove_prefix(n);
  return bytes;
}

void read_summary(std::string_view summary, Event& event) {
  while (!summary.empty()) {
    EXPECT_EQ(take_varint(summary), 1u << 3 | 2u);
    std::string_view value = take_bytes(summary);
    EXPECT_EQ(take_varint(value), 1u << 3 | 2u);
    const std::string tag(take_bytes(value));
    EXPECT_EQ(take_varint(value), 2u << 3 | 5u);
    event.scalars.emplace_back(tag, take<float>(value));
  }
}

Event parse_event(std::string_view data) {
  Event event;
  while (!data.empty()) {
    const uint64_t key = take_varint(data);
    if (key == (1u << 3 | 1u)) {
      event.time = take<double>(data);
    } else if (key == 2u << 3) {
      event.step = static_cast<int64_t>(take_varint(data));
    } else if (key == (3u << 3 | 2u)) {
      event.version = take_bytes(data);
    } else if (key == (5u << 3 | 2u)) {
      read_summary(take_bytes(data), event);
    } else {
      EXPECT_EQ(key, 7u << 3 | 2u);
      event.start = take_bytes(data) == std::string_view("\x08\x01");
    }
  }
  return event;
}

uint32_t unmasked(uint32_t masked) {
  return std::rotl(masked - 0xA282EAD8u, 15);
}

std::vector<Event> read_events(const std::string& path) {
  const std::string file = read_text_file(path);
  std::string_view left = file;
  std::vector<Event> events;
  while (!left.empty()) {
    const std::string_view length_bytes = left.substr(0, 8);
    const auto length = take<uint64_t>(left);
    EXPECT_EQ(unmasked(take<uint32_t>(left)), crc32c(length_bytes));
    const std::string_view data = left.substr(0, length);
    left.remove_prefix(length);
    EXPECT_EQ(unmasked(take<uint32_t>(left)), crc32c(data));
    events.push_back(parse_event(data));
  }
  return events;
}

TEST(TensorBoard, EventsReadBack) {
  const TemporaryFolder folder;
  EventFile file(folder / "tensorboard", 0), other(folder / "tensorboard", 300);
  EXPECT_LT(file.path(), other.path());
  file.write(1, {{"train/loss", 2.5}, {"train/lr", 4e-4}});
  file.write(int64_t{1} << 40, {{"train/loss", std::nan("")}});
  const auto events = read_events(file.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_GT(events[0].time, 1.6e9);
  EXPECT_EQ(events[1].step, 1);
  ASSERT_EQ(events[1].scalars.size(), 2u);
  EXPECT_EQ(events[1].scalars[0], std::pair(std::string("train/loss"), 2.5f));
  EXPECT_EQ(events[1].scalars[1], std::pair(std::string("train/lr"), 4e-4f));
  EXPECT_EQ(events[2].step, int64_t{1} << 40);
  EXPECT_TRUE(std::isnan(events[2].scalars[0].second));

  const auto resumed = read_events(other.path());
  ASSERT_EQ(resumed.size(), 2u);
  EXPECT_TRUE(resumed[1].start);
  EXPECT_EQ(resumed[1].step, 301);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) n++;
  return n;
}

TEST(Plot, DrawsEveryRunInEveryChart) {
  std::vector<StepMetrics> steps, few;
  for (int n = 1; n <= 3000; n++) steps.push_back(step(n, 1));
  steps[99].validation_loss = 3, steps[199].validation_loss = 2;
  for (int n = 1; n <= 5; n++) few.push_back(step(n));
  few[2].loss = std::nan("");
  const std::string page = plot_page({{"runs/a", steps}, {"<b> & \"c\"", few}});
  EXPECT_EQ(count(page, "<svg "), 4u);
  // Two runs in four charts, a validation curve, and the second run's loss in two pieces.
  EXPECT_EQ(count(page, "<polyline "), 2u * 4 + 1 + 1);
  EXPECT_EQ(count(page, "class=\"line validation\""), 1u);
  EXPECT_EQ(count(page, "&lt;b&gt; &amp; &quot;c&quot;"), 1u + 5);
  EXPECT_EQ(count(page, "<b>"), 0u);
  EXPECT_LT(page.size(), 200000u);  // 3000 steps are thinned
  for (const char* foreign : {"http:", "https:", "nan", "inf", "src="})
    EXPECT_EQ(count(page, foreign), 0u) << foreign;
}

// Where a point of the one line lies is what its value says.
TEST(Plot, PointsAreWhereTheValuesSay) {
  const std::string page = plot_page({{"a", {{1, 0, 5, 1, 1, 0}, {3, 4, 5, 1, 1, 0}}}});
  // 4 % of the range stay free above and below: 258 pixels * 4 / 108.
  EXPECT_NE(page.find("points=\"64.0,260.4 616.0,21.6\""), std::string::npos);
  // A flat line lies in the middle.
  EXPECT_NE(page.find("points=\"64.0,141.0 616.0,141.0\""), std::string::npos);
}

TEST(Plot, EmptyRunsAreFine) {
  const std::string page = plot_page({{"a", {}}});
  EXPECT_EQ(count(page, "<svg "), 4u);
  EXPECT_EQ(count(page, "<polyline "), 0u);
  StepMetrics lone = step(1);
  EXPECT_EQ(count(plot_page({{"a", {lone}}}), "<polyline "), 4u);
}

}  // namespace
}  // namespace tinyllama
