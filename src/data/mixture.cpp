#include "data/mixture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "data/permutation.h"

namespace tinyllama {
namespace {

constexpr int kPartBits = 32;
__extension__ using Wide = unsigned __int128;

// How many of the first n draws a source gets that takes `part` of them: n * part, rounded.
uint64_t taken(uint64_t n, uint64_t part) {
  return static_cast<uint64_t>((static_cast<Wide>(n) * part + (Wide{1} << (kPartBits - 1))) >>
                               kPartBits);
}

}  // namespace

Mixture::Mixture(const std::vector<MixtureSource>& sources, int64_t context, Order order,
                 uint64_t seed)
    : context_(context), order_(order), seed_(seed) {
  TL_CHECK(!sources.empty() && context > 0);
  double left = 0;
  for (const MixtureSource& source : sources) {
    TL_CHECK(std::isfinite(source.weight) && source.weight > 0);
    left += source.weight;
  }
  const double total = left;
  const uint64_t block_tokens = static_cast<uint64_t>(context) + 1;
  for (const MixtureSource& source : sources) {
    Source& made = sources_.emplace_back();
    made.folder = std::make_unique<TokenFolder>(source.path);
    const uint64_t n = made.folder->n_tokens();
    if (n < 2)
      fail(fmt::format("[data] {}: want at least 2 tokens to learn from, got {}", source.path, n));
    if (made.folder->vocab() != vocab())
      fail(fmt::format(
          "[data] {}: its tokens are of another tokenizer than those of {}: prepare both with one",
          source.path, sources.front().path));
    made.n_blocks = n / block_tokens + (n % block_tokens >= 2 ? 1 : 0);
    made.share = source.weight / total;
    const double part = std::min(source.weight / left, 1.0);
    made.part = static_cast<uint64_t>(std::llround(std::ldexp(part, kPartBits)));
    left -= source.weight;
  }
  sources_.back().part = uint64_t{1} << kPartBits;
}

// The first source takes its part of the draws, evenly spread; of what it leaves, the second takes
// its part, and so on. Whether a source takes draw n, and how many it took before, follow from
// rounding n * part.
Mixture::Draw Mixture::draw(uint64_t n) const {
  size_t i = 0;
  uint64_t before = taken(n, sources_[i].part);
  while (taken(n + 1, sources_[i].part) == before) {
    n -= before;
    before = taken(n, sources_[++i].part);
  }
  const Source& source = sources_[i];
  const uint64_t epoch = before / source.n_blocks, index = before % source.n_blocks;
  if (order_ == Order::sequential) return {i, epoch, index};
  return {i, epoch, Permutation(source.n_blocks, hash_key(seed_, i, epoch))(index)};
}

Mixture::Range Mixture::range(size_t source, uint64_t block) const {
  TL_CHECK(source < sources_.size() && block < sources_[source].n_blocks);
  const uint64_t size = static_cast<uint64_t>(context_) + 1, first = block * size;
  return {first, std::min(size, sources_[source].folder->n_tokens() - first)};
}

}  // namespace tinyllama
