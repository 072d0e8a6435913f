// Choices from a row of scores, without sorting the row: a bound is moved between the highest and
// the lowest score until few tokens lie about the place in question, and only these are sorted.
#include "scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

constexpr int64_t kFew = 48;
constexpr int64_t kBlock = 512;
// Passes go on over a copy of what is left once that is so many times less.
constexpr int64_t kShrink = 8;
// Below the largest score by this, a token weighs nothing.
constexpr float kDepth = 88.0f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Token {
  float score;
  float weight;
  int64_t place;
};

// Some of a row's tokens in their order.
struct View {
  const float* scores;
  const float* weights;
  const int32_t* places;  // null: all of the row
  int64_t count;
};

// Tokens of neighbouring ranks, and the sum over those that rank before them.
struct Band {
  std::vector<Token> tokens;
  double before;
};

// Kept by each thread, for the longest row so far.
struct Scratch {
  std::vector<float> scaled, weights, some_scores, some_weights;
  std::vector<int32_t> some_places, hits;

  void fit(int64_t count) {
    if (static_cast<int64_t>(scaled.size()) >= count) return;
    for (auto* floats : {&scaled, &weights, &some_scores, &some_weights}) floats->resize(count);
    some_places.resize(count);
    hits.resize(count + kRoom);
  }
};

thread_local Scratch scratch;

// A row divided by its temperature; its weights are not there before they are asked for.
class Row {
 public:
  Row(const RowPasses& passes, const Matrix& scores, int64_t number, float temperature)
      : passes_(passes), count_(scores.columns) {
    scratch.fit(count_);
    const float* row = static_cast<const float*>(scores.data) + number * scores.stride;
    extremes_ = passes.scale(row, count_, temperature, scratch.scaled.data());
  }

  const RowPasses& passes() const { return passes_; }
  int64_t count() const { return count_; }
  float largest() const { return extremes_.largest; }
  float deepest() const { return std::max(extremes_.least, extremes_.largest - kDepth); }
  const float* scores() const { return scratch.scaled.data(); }
  const float* weights() const { return scratch.weights.data(); }

  void weigh() const {
    passes_.exponentiate(scores(), count_, largest(), scratch.weights.data());
  }

 private:
  const RowPasses& passes_;
  const int64_t count_;
  Extremes extremes_;
};

// What is summed by rank: tokens, or their weights.
enum class Sum { kCount, kWeight };

struct Sums {
  int64_t count;
  double sum;
};

Sums sums_from(const RowPasses& passes, const View& view, float bound, Sum kind) {
  if (kind == Sum::kCount) {
    const int64_t count = passes.count_from(view.scores, view.count, bound);
    return {count, static_cast<double>(count)};
  }
  const Share share = passes.share_from(view.scores, view.weights, view.count, bound);
  return {share.count, share.weight};
}

View narrowed(const RowPasses& passes, const View& view, float low, float high, Sum kind) {
  Scratch& to = scratch;
  const int64_t count =
      passes.places_between(view.scores, view.count, low, high, to.hits.data());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t place = to.hits[i];
    to.some_places[i] = view.places == nullptr ? place : view.places[place];
    to.some_scores[i] = view.scores[place];
    if (kind == Sum::kWeight) to.some_weights[i] = view.weights[place];
  }
  return {to.some_scores.data(), to.some_weights.data(), to.some_places.data(), count};
}

void sort_by_rank(std::vector<Token>* tokens) {
  std::sort(tokens->begin(), tokens->end(), [](const Token& a, const Token& b) {
    return a.score != b.score ? a.score > b.score : a.place < b.place;
  });
}

std::vector<Token> tokens_of(const View& view, Sum kind) {
  std::vector<Token> tokens(view.count);
  for (int64_t i = 0; i < view.count; ++i) {
    const float weight = kind == Sum::kWeight ? view.weights[i] : 0.0f;
    tokens[i] = {view.scores[i], weight, view.places[i]};
  }
  sort_by_rank(&tokens);
  return tokens;
}

// The few tokens among which the sum by rank first exceeds a target; the last ones if it never
// does. Of neighbouring bounds the sum from the higher one is within the target, that from the
// lower one beyond it: both are sums of one view in one order, so some token is between them.
Band band_at(const Row& row, double target, Sum kind) {
  const RowPasses& passes = row.passes();
  View view = {row.scores(), row.weights(), nullptr, row.count()};
  float low = row.deepest(), high = std::nextafter(row.largest(), kInfinity);
  double outside = 0.0;  // the sum over what ranks before the view
  Sums before = {0, 0.0}, upto = sums_from(passes, view, low, kind);
  if (kind == Sum::kCount && !(upto.sum > target)) {
    before = upto;
    high = low;
    low = -kInfinity;
    upto.count = view.count;
  }
  if (kind == Sum::kWeight) target = std::min(target, std::nextafter(upto.sum, 0.0));
  while (upto.count - before.count > kFew && low > -kInfinity) {
    const float middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    Sums sums = sums_from(passes, view, middle, kind);
    sums.sum += outside;
    const bool is_beyond = sums.sum > target;
    (is_beyond ? low : high) = middle;
    (is_beyond ? upto : before) = sums;
    if ((upto.count - before.count) * kShrink > view.count) continue;
    view = narrowed(passes, view, low, high, kind);
    outside = before.sum;
    before.count = 0;
    upto = sums_from(passes, view, low, kind);
    target = std::min(target, std::nextafter(outside + upto.sum, 0.0));
  }
  return {tokens_of(narrowed(passes, view, low, high, kind), kind), before.sum};
}

// The token with which the weight by rank first exceeds a target, and the weight with it.
std::pair<int64_t, double> token_at(const Row& row, double target) {
  const Band band = band_at(row, target, Sum::kWeight);
  double weight = band.before;
  int64_t last = 0;
  for (const Token& token : band.tokens) {
    if (!(token.weight > 0.0f)) continue;
    weight += token.weight;
    last = token.place;
    if (weight > target) break;
  }
  return {last, weight};
}

// The first tokens by rank; without weights.
std::vector<Token> top_tokens(const Row& row, int64_t count) {
  const Band band = band_at(row, static_cast<double>(count) - 0.5, Sum::kCount);
  const int64_t num_before = static_cast<int64_t>(band.before);
  const int64_t num_left = std::min<int64_t>(band.tokens.size(), count - num_before);
  if (num_left <= 0) return {};
  const float least = band.tokens[num_left - 1].score;
  const View view = {row.scores(), nullptr, nullptr, row.count()};
  std::vector<Token> tokens =
      tokens_of(narrowed(row.passes(), view, least, kInfinity, Sum::kCount), Sum::kCount);
  if (static_cast<int64_t>(tokens.size()) > count) tokens.resize(count);
  return tokens;
}

// Draws from tokens that are sorted by rank.
std::vector<int64_t> draw_among(const Row& row, std::vector<Token> tokens, const DrawRow& draw) {
  if (tokens.empty()) return std::vector<int64_t>(draw.uniforms.size(), 0);
  for (size_t i = 0; i < tokens.size(); ++i) scratch.some_scores[i] = tokens[i].score;
  float* weights = scratch.some_weights.data();
  row.passes().exponentiate(scratch.some_scores.data(), tokens.size(), row.largest(), weights);
  std::vector<double> ends;
  double total = 0.0;
  for (size_t i = 0; i < tokens.size(); ++i) ends.push_back(total += weights[i]);
  size_t num_kept = 1;
  while (num_kept < tokens.size() && ends[num_kept - 1] < draw.top_p * total &&
         weights[num_kept] >= static_cast<float>(draw.min_p) * weights[0]) {
    ++num_kept;
  }
  std::vector<int64_t> drawn;
  for (double uniform : draw.uniforms) {
    const double target = uniform * ends[num_kept - 1];
    size_t place = std::upper_bound(ends.begin(), ends.begin() + num_kept, target) - ends.begin();
    drawn.push_back(tokens[std::min(place, num_kept - 1)].place);
  }
  return drawn;
}

// Draws from all tokens by rank, less those that top-p and min-p cut off.
std::vector<int64_t> draw_ranked(const Row& row, const DrawRow& draw) {
  row.weigh();
  const double total = row.passes().sum(row.weights(), row.count());
  double kept = total;
  if (draw.top_p < 1.0) {
    // The first that reaches the share is kept.
    kept = token_at(row, std::nextafter(draw.top_p * total, 0.0)).second;
  }
  if (draw.min_p > 0.0) {
    const float least = static_cast<float>(draw.min_p);
    const float* weights = row.weights();
    kept = std::min(kept, row.passes().share_from(weights, weights, row.count(), least).weight);
  }
  std::vector<int64_t> drawn;
  for (double uniform : draw.uniforms) {
    const double target = std::min(uniform * kept, std::nextafter(kept, 0.0));
    drawn.push_back(token_at(row, target).first);
  }
  return drawn;
}

// In the order of the tokens; block by block, then one by one.
std::vector<int64_t> draw_whole(const Row& row, const DrawRow& draw) {
  row.weigh();
  const float* weights = row.weights();
  std::vector<double> blocks;
  double total = 0.0;
  for (int64_t first = 0; first < row.count(); first += kBlock) {
    blocks.push_back(row.passes().sum(weights + first, std::min(kBlock, row.count() - first)));
    total += blocks.back();
  }
  std::vector<int64_t> drawn;
  for (double uniform : draw.uniforms) {
    const double target = std::min(uniform * total, std::nextafter(total, 0.0));
    double before = 0.0;
    size_t block = 0;
    while (block + 1 < blocks.size() && before + blocks[block] <= target) before += blocks[block++];
    int64_t token = static_cast<int64_t>(block) * kBlock, last = token;
    const int64_t end = std::min(token + kBlock, row.count());
    for (; token < end; ++token) {
      if (!(weights[token] > 0.0f)) continue;
      last = token;
      before += weights[token];
      if (before > target) break;
    }
    drawn.push_back(last);
  }
  return drawn;
}

}  // namespace

std::vector<int64_t> draw_row(const RowPasses& passes, const Matrix& scores, const DrawRow& draw) {
  const Row row(passes, scores, draw.row, draw.temperature);
  if (draw.top_k > 0 && draw.top_k < row.count()) {
    return draw_among(row, top_tokens(row, draw.top_k), draw);
  }
  const bool is_whole = draw.top_p >= 1.0 && draw.min_p <= 0.0;
  return is_whole ? draw_whole(row, draw) : draw_ranked(row, draw);
}

void top_of_row(const RowPasses& passes, const Matrix& scores, const TopRow& top) {
  const Row row(passes, scores, top.row, 1.0f);
  const std::vector<Token> tokens = top_tokens(row, top.count);
  for (int64_t i = 0; i < top.count; ++i) {
    const bool is_there = i < static_cast<int64_t>(tokens.size());
    top.ids[i] = is_there ? tokens[i].place : 0;
    top.scores[i] = is_there ? tokens[i].score : -kInfinity;
  }
}

float log_sum_exp(const RowPasses& passes, const Matrix& scores, int64_t number) {
  const Row row(passes, scores, number, 1.0f);
  if (row.largest() == -kInfinity) return -kInfinity;
  row.weigh();
  return static_cast<float>(row.largest() + std::log(passes.sum(row.weights(), row.count())));
}
