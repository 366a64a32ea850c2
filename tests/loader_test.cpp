// The order of a training run's data: nothing twice, nothing left out, whoever reads it and however
// often it was interrupted.
#include "data/loader.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "base/error.h"
#include "data/permutation.h"
#include "support/assets.h"

namespace tinyllama {
namespace {

using namespace testing;

const ShardVocab kVocab = {77, 60000, 2};

// A shard of documents of the given lengths (eos included) whose other tokens count up from
// `first`.
void write_shard(const std::string& path, const std::vector<size_t>& lengths, TokenId first = 3) {
  ShardWriter writer(kVocab);
  for (const size_t length : lengths) {
    std::vector<TokenId> document(length);
    for (size_t i = 0; i + 1 < length; i++) document[i] = first++;
    document.back() = 2;
    writer.add(document);
  }
  writer.write(path);
}

std::shared_ptr<const Mixture> mixture(const std::vector<MixtureSource>& sources, int64_t context,
                                       Order order = Order::shuffled, uint64_t seed = 1) {
  return std::make_shared<const Mixture>(sources, context, order, seed);
}

TEST(Permutation, IsOneForEverySize) {
  for (uint64_t n : {1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097})
    for (uint64_t key = 0; key < 3; key++) {
      const Permutation p(n, key);
      std::vector<bool> hit(n);
      for (uint64_t i = 0; i < n; i++) {
        ASSERT_LT(p(i), n);
        EXPECT_FALSE(hit[p(i)]);
        hit[p(i)] = true;
      }
    }
}

TEST(Permutation, LooksRandom) {
  // Of a random permutation, the mean distance of neighbours' images is n / 3, and one point stays
  // in place; another key gives another order.
  constexpr uint64_t n = 10000;
  const Permutation p(n, 5), q(n, 6);
  double distance = 0;
  int fixed = 0, same = 0;
  for (uint64_t i = 0; i < n; i++) {
    distance += std::abs(static_cast<double>(p(i)) - static_cast<double>(p((i + 1) % n))) / n;
    fixed += p(i) == i;
    same += p(i) == q(i);
  }
  EXPECT_NEAR(distance, n / 3.0, 0.03 * n);
  EXPECT_LT(fixed, 10);
  EXPECT_LT(same, 10);
  const Permutation huge(uint64_t{1} << 62, 5);
  EXPECT_LT(huge((uint64_t{1} << 62) - 1), uint64_t{1} << 62);
}

class LoaderTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

TEST_F(LoaderTest, MixesByWeight) {
  write_shard(folder_ / "a.tok", {90});
  write_shard(folder_ / "b.tok", {50});
  write_shard(folder_ / "c.tok", {10});
  const auto mixed =
      mixture({{folder_ / "a.tok", 6}, {folder_ / "b.tok", 3}, {folder_ / "c.tok", 1}}, 4);
  EXPECT_EQ(mixed->n_blocks(0), 18u);
  EXPECT_DOUBLE_EQ(mixed->share(1), 0.3);
  std::vector<double> counts(3);
  std::vector<std::map<std::pair<uint64_t, uint64_t>, int>> drawn(3);  // (epoch, block)
  for (uint64_t n = 0; n < 5000; n++) {
    const Mixture::Draw draw = mixed->draw(n);
    counts[draw.source]++;
    EXPECT_EQ(drawn[draw.source][std::pair(draw.epoch, draw.block)]++, 0);
    for (size_t i = 0; i < 3; i++)
      EXPECT_NEAR(counts[i], static_cast<double>(n + 1) * mixed->share(i), 2.001);
  }
  EXPECT_EQ(counts, (std::vector<double>{3000, 1500, 500}));
}

TEST_F(LoaderTest, EpochsHaveOrdersOfTheirOwnAndSeedsToo) {
  write_shard(folder_ / "a.tok", {500});
  const std::vector<MixtureSource> source = {{folder_ / "a.tok"}};
  const auto one = mixture(source, 4), two = mixture(source, 4, Order::shuffled, 2);
  const auto sequential = mixture(source, 4, Order::sequential);
  int equal_epochs = 0, equal_seeds = 0;
  for (uint64_t n = 0; n < 100; n++) {
    equal_epochs += one->draw(n).block == one->draw(n + 100).block;
    equal_seeds += one->draw(n).block == two->draw(n).block;
    EXPECT_EQ(sequential->draw(n).block, n);
    EXPECT_EQ(sequential->draw(n + 100).block, n);
    EXPECT_EQ(one->draw(n + 100).epoch, 1u);
  }
  EXPECT_LT(equal_epochs, 10);
  EXPECT_LT(equal_seeds, 10);
}

TEST_F(LoaderTest, ReadsBlocksAndTargets) {
  write_shard(folder_ / "a.tok", {12});  // 3 .. 13, 2: blocks of 5, 5 and 2
  Loader loader(mixture({{folder_ / "a.tok"}}, 4, Order::sequential),
                {.blocks_per_step = 3, .micro_batch = 3});
  MicroBatch batch;
  loader.read(0, batch);
  EXPECT_EQ(batch.tokens, (std::vector<TokenId>{3, 4, 5, 6, 8, 9, 10, 11, 13}));
  EXPECT_EQ(batch.targets, (std::vector<TokenId>{4, 5, 6, 7, 9, 10, 11, 12, 2}));
  EXPECT_EQ(batch.documents, (std::vector<int64_t>{4, 4, 1}));
  EXPECT_EQ(batch.draws, (std::vector<uint64_t>{0, 1, 2}));
  EXPECT_EQ(loader.step_targets(), 9u);
}

TEST_F(LoaderTest, DocumentsSeeOnlyThemselves) {
  // Over two shards of one folder: blocks of 9 cross documents and the shards' boundary.
  write_shard(folder_ / "a.tok", {3, 4, 5}, 10);
  write_shard(folder_ / "b.tok", {1, 2, 8}, 30);
  const auto source = mixture({{folder_ / ""}}, 8, Order::sequential);
  Loader loader(source, {.blocks_per_step = 1});
  MicroBatch batch;
  loader.read(0, batch);
  EXPECT_EQ(batch.tokens, (std::vector<TokenId>{10, 11, 2, 12, 13, 14, 2, 15}));
  EXPECT_EQ(batch.targets, (std::vector<TokenId>{11, 2, kNoTarget, 13, 14, 2, kNoTarget, 16}));
  EXPECT_EQ(batch.documents, (std::vector<int64_t>{3, 4, 1}));
  EXPECT_EQ(loader.step_targets(), 6u);
  loader.next_step();
  loader.read(0, batch);
  EXPECT_EQ(batch.tokens, (std::vector<TokenId>{17, 18, 2, 2, 30, 2, 31, 32}));
  EXPECT_EQ(batch.targets,
            (std::vector<TokenId>{18, 2, kNoTarget, kNoTarget, 2, kNoTarget, 32, 33}));
  EXPECT_EQ(batch.documents, (std::vector<int64_t>{3, 1, 2, 2}));
  EXPECT_EQ(loader.step_targets(), 5u);

  const Loader joined(source, {.blocks_per_step = 1, .mask_documents = false});
  joined.read(0, batch);
  EXPECT_EQ(batch.targets, (std::vector<TokenId>{11, 2, 12, 13, 14, 2, 15, 16}));
  EXPECT_EQ(batch.documents, (std::vector<int64_t>{8}));
}

// A boundary right behind a block's inputs takes the target of its last row, nothing else.
TEST_F(LoaderTest, BoundaryAtTheLastTarget) {
  write_shard(folder_ / "a.tok", {4, 6});
  const Loader loader(mixture({{folder_ / "a.tok"}}, 4, Order::sequential), {.blocks_per_step = 1});
  MicroBatch batch;
  loader.read(0, batch);
  EXPECT_EQ(batch.documents, (std::vector<int64_t>{4}));
  EXPECT_EQ(batch.targets, (std::vector<TokenId>{4, 5, 2, kNoTarget}));
  EXPECT_EQ(loader.step_targets(), 3u);
}

// What a step reads, in order over micro-batches and ranks, is the same for any number of ranks,
// and a loader put at a position goes on as the one that came there by itself.
TEST_F(LoaderTest, RanksAndResumeDoNotChangeTheData) {
  write_shard(folder_ / "a.tok", std::vector<size_t>(40, 7));
  write_shard(folder_ / "b.tok", std::vector<size_t>(20, 5), 1000);
  const auto mixed = mixture({{folder_ / "a.tok", 7}, {folder_ / "b.tok", 3}}, 6);
  const auto tokens_of_step = [&](int ranks, int64_t micro_batch, uint64_t position) {
    std::vector<TokenId> tokens;
    MicroBatch batch;
    const int64_t n = 12 / (micro_batch * ranks);
    for (int64_t i = 0; i < n; i++)
      for (int rank = 0; rank < ranks; rank++) {
        Loader loader(mixed, {12, micro_batch, rank, ranks, true});
        loader.seek(position);
        EXPECT_EQ(loader.micro_batches(), n);
        loader.read(i, batch);
        tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
      }
    return tokens;
  };
  Loader walker(mixed, {.blocks_per_step = 12, .micro_batch = 12});
  std::set<std::vector<TokenId>> steps;
  for (int step = 0; step < 5; step++) {
    MicroBatch batch;
    walker.read(0, batch);
    uint64_t targets = 0;
    for (const TokenId target : batch.targets) targets += target != kNoTarget;
    EXPECT_EQ(walker.step_targets(), targets);
    EXPECT_EQ(std::accumulate(batch.documents.begin(), batch.documents.end(), int64_t{0}),
              static_cast<int64_t>(batch.tokens.size()));
    for (const auto& [ranks, micro] :
         std::vector<std::pair<int, int64_t>>{{1, 12}, {1, 3}, {2, 3}, {2, 6}, {3, 4}, {4, 1}})
      EXPECT_EQ(tokens_of_step(ranks, micro, walker.position()), batch.tokens)
          << ranks << " ranks, micro-batch " << micro;
    steps.insert(batch.tokens);
    walker.next_step();
  }
  EXPECT_EQ(steps.size(), 5u);
  EXPECT_EQ(walker.position(), 60u);
}

TEST_F(LoaderTest, ProvesAPlan) {
  write_shard(folder_ / "a.tok", {103});
  write_shard(folder_ / "b.tok", {40});
  const auto mixed = mixture({{folder_ / "a.tok", 7}, {folder_ / "b.tok", 3}}, 4);
  ASSERT_EQ(mixed->n_blocks(0), 21u);  // the last one of 3 tokens
  for (int ranks : {1, 2, 5}) {
    const auto uses = prove_plan(
        mixed, {.blocks_per_step = 10, .micro_batch = 2 / (ranks == 2 ? 2 : 1), .ranks = ranks},
        30);
    EXPECT_EQ(uses[0].blocks, 210u);
    EXPECT_EQ(uses[0].tokens, 10u * 103);
    EXPECT_DOUBLE_EQ(uses[0].epochs, 10);
    EXPECT_EQ(uses[1].blocks, 90u);
    EXPECT_EQ(uses[1].tokens, 450u);
    EXPECT_DOUBLE_EQ(uses[1].epochs, 11.25);
  }
}

TEST_F(LoaderTest, SmallAndWrongSources) {
  write_shard(folder_ / "two.tok", {2});
  Loader loader(mixture({{folder_ / "two.tok"}}, 1000), {.blocks_per_step = 4, .micro_batch = 2});
  MicroBatch batch;
  loader.read(1, batch);
  EXPECT_EQ(batch.tokens, (std::vector<TokenId>{3, 3}));
  EXPECT_EQ(batch.targets, (std::vector<TokenId>{2, 2}));

  write_shard(folder_ / "one.tok", {1});
  EXPECT_THROW(mixture({{folder_ / "one.tok"}}, 4), Error);
  EXPECT_THROW(mixture({{folder_ / "absent"}}, 4), Error);
  ShardWriter other({78, 60000, 2});
  other.add(std::vector<TokenId>{5, 6, 2});
  other.write(folder_ / "other.tok");
  EXPECT_THROW(mixture({{folder_ / "two.tok"}, {folder_ / "other.tok"}}, 4), Error);
}

}  // namespace
}  // namespace tinyllama
