#include "data/loader.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace tinyllama {
namespace {

// Calls visit(at) for each document that begins inside (first, first + n) of the folder.
template <class Visit>
void for_each_start(const TokenFolder& folder, uint64_t first, uint64_t n, Visit&& visit) {
  const uint64_t end = first + n;
  for (size_t shard = folder.shard_of(first); shard < folder.shards().size(); shard++) {
    const uint64_t base = folder.first_token(shard);
    if (base >= end) return;
    const auto starts = folder.shards()[shard].documents();
    const uint64_t from = first + 1 > base ? first + 1 - base : 0;
    for (auto at = std::lower_bound(starts.begin(), starts.end(), from);
         at != starts.end() && base + *at < end; ++at)
      visit(base + *at);
  }
}

}  // namespace

Loader::Loader(std::shared_ptr<const Mixture> mixture, const LoaderOptions& options)
    : mixture_(std::move(mixture)), options_(options) {
  TL_CHECK(options.micro_batch > 0 && options.rank >= 0 && options.rank < options.ranks);
  TL_CHECK(options.blocks_per_step > 0 &&
           options.blocks_per_step % (options.micro_batch * options.ranks) == 0);
}

int64_t Loader::micro_batches() const {
  return options_.blocks_per_step / (options_.micro_batch * options_.ranks);
}

uint64_t Loader::first_draw(int64_t i) const {
  TL_CHECK(i >= 0 && i < micro_batches());
  return position_ +
         static_cast<uint64_t>((i * options_.ranks + options_.rank) * options_.micro_batch);
}

// Lengths of the documents among the inputs of a block, which are all its tokens but the last.
std::vector<int64_t> Loader::document_lengths(const Mixture::Draw& draw,
                                              Mixture::Range range) const {
  const TokenFolder& folder = mixture_->folder(draw.source);
  const uint64_t n_inputs = range.n - 1;
  std::vector<int64_t> lengths;
  uint64_t begin = range.first;
  if (options_.mask_documents && folder.has_documents())
    for_each_start(folder, range.first, n_inputs, [&](uint64_t at) {
      lengths.push_back(static_cast<int64_t>(at - begin));
      begin = at;
    });
  lengths.push_back(static_cast<int64_t>(range.first + n_inputs - begin));
  return lengths;
}

void Loader::read(int64_t i, MicroBatch& to) const {
  const uint64_t first = first_draw(i);
  to.tokens.clear(), to.targets.clear(), to.documents.clear(), to.draws.clear();
  std::vector<TokenId> block;
  for (uint64_t n = first; n < first + static_cast<uint64_t>(options_.micro_batch); n++) {
    const Mixture::Draw draw = mixture_->draw(n);
    const Mixture::Range range = mixture_->range(draw.source, draw.block);
    const TokenFolder& folder = mixture_->folder(draw.source);
    block.resize(range.n);
    folder.read(range.first, block);
    const size_t row = to.tokens.size();
    to.tokens.insert(to.tokens.end(), block.begin(), block.end() - 1);
    to.targets.insert(to.targets.end(), block.begin() + 1, block.end());
    const std::vector<int64_t> lengths = document_lengths(draw, range);
    to.documents.insert(to.documents.end(), lengths.begin(), lengths.end());
    if (options_.mask_documents && folder.has_documents())
      for_each_start(folder, range.first, range.n,
                     [&](uint64_t at) { to.targets[row + (at - range.first) - 1] = kNoTarget; });
    to.draws.push_back(n);
  }
}

uint64_t Loader::step_targets() const {
  uint64_t targets = 0;
  for (int64_t k = 0; k < options_.blocks_per_step; k++) {
    const Mixture::Draw draw = mixture_->draw(position_ + static_cast<uint64_t>(k));
    const Mixture::Range range = mixture_->range(draw.source, draw.block);
    const TokenFolder& folder = mixture_->folder(draw.source);
    targets += range.n - 1;
    if (options_.mask_documents && folder.has_documents())
      for_each_start(folder, range.first, range.n, [&](uint64_t) { targets--; });
  }
  return targets;
}

std::vector<SourceUse> prove_plan(const std::shared_ptr<const Mixture>& mixture,
                                  LoaderOptions options, int64_t steps, const Progress& progress) {
  std::vector<SourceUse> uses(mixture->n_sources());
  std::vector<std::vector<bool>> seen;  // blocks drawn in a source's present epoch
  for (size_t i = 0; i < uses.size(); i++) seen.emplace_back(mixture->n_blocks(i));
  std::vector<Loader> ranks;
  for (options.rank = 0; options.rank < options.ranks; options.rank++)
    ranks.emplace_back(mixture, options);

  uint64_t expected = 0;  // the draw that comes next
  const auto check_draw = [&](uint64_t n, int rank) {
    if (n != expected)
      fail(fmt::format("[plan] rank {} draws block {} where {} is due: one is skipped or repeated",
                       rank, n, expected));
    expected++;
    const Mixture::Draw draw = mixture->draw(n);
    SourceUse& use = uses[draw.source];
    std::vector<bool>& drawn = seen[draw.source];
    if (use.blocks > 0 && use.blocks % drawn.size() == 0) drawn.assign(drawn.size(), false);
    if (draw.epoch != use.blocks / drawn.size() || draw.block >= drawn.size() || drawn[draw.block])
      fail(fmt::format("[plan] draw {}: block {} of {} is drawn a second time in epoch {}", n,
                       draw.block, mixture->folder(draw.source).path(), draw.epoch));
    drawn[draw.block] = true;
    use.blocks++;
    use.tokens += mixture->range(draw.source, draw.block).n;
  };
  for (int64_t step = 0; step < steps; step++) {
    for (int64_t i = 0; i < ranks.front().micro_batches(); i++)
      for (const Loader& loader : ranks)
        for (int64_t b = 0; b < options.micro_batch; b++)
          check_draw(loader.first_draw(i) + static_cast<uint64_t>(b),
                     static_cast<int>(&loader - ranks.data()));
    for (Loader& loader : ranks) loader.next_step();
    if (progress && step % 256 == 0)
      progress("steps", static_cast<uint64_t>(step), static_cast<uint64_t>(steps));
  }
  for (size_t i = 0; i < uses.size(); i++)
    uses[i].epochs =
        static_cast<double>(uses[i].blocks) / static_cast<double>(mixture->n_blocks(i));
  return uses;
}

}  // namespace tinyllama
