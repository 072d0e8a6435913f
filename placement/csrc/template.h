// Shortest chains of blocks under a memory budget, exact, for stacks of a few kinds of blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace planner {

// One way through a block: from a layout of what comes in to one of what goes out.
struct Way {
    int32_t source;
    int32_t target;
    int64_t bytes;
    double cost;
};

struct Template {
    int32_t num_sources;
    int32_t num_targets;
    std::vector<Way> ways;
};

// A way for each block, by its number in the block's template; none if nothing fits.
struct ChainPlan {
    double cost = std::numeric_limits<double>::infinity();
    int64_t bytes = 0;
    std::vector<int32_t> ways;
};

// Ways through the first blocks that end in one layout. `parent` is a point of the block before.
struct ChainPoint {
    int64_t bytes;
    double cost;
    int32_t way;
    int32_t parent;
};

// What can be reached after a block: layout s has the points [begins[s], begins[s + 1]).
struct ChainLayer {
    std::vector<ChainPoint> points;
    std::vector<int32_t> begins;
};

class Chain {
  public:
    // `order` names each block's template. Throws std::invalid_argument where they don't fit.
    Chain(std::vector<Template> templates, std::vector<int32_t> order);

    // Bytes of the smallest chain.
    int64_t min_bytes() const;

    // The cheapest chain within a budget, if it costs less than `limit`.
    ChainPlan solve(int64_t budget, double limit) const;

    // Reaches all layouts after every block within a budget, keeping one point of each of
    // `num_buckets` equal ranges of bytes, besides the smallest and the cheapest.
    void sweep(int64_t budget, int32_t num_buckets);

    // What the sweep found for the first `length` blocks, and one more of template `tail` if that
    // isn't negative: from the smallest to the cheapest, none both larger and more expensive than
    // another, and at most `max_points`.
    std::vector<ChainPlan> front(int32_t length, int32_t tail, int32_t max_points) const;

  private:
    struct Potentials;

    const Template& at(std::size_t block) const { return templates_[order_[block]]; }
    int32_t num_layouts(std::size_t block) const;
    Potentials to_go(double cost_weight, double byte_weight) const;
    ChainPlan walk(const Potentials& potentials) const;
    ChainPlan search(const Potentials& potentials, double price, int64_t budget, double cutoff,
                     const std::vector<std::vector<double>>& bytes_to_go) const;
    std::vector<int32_t> trace(const std::vector<ChainLayer>& layers, std::size_t length,
                               int32_t point) const;

    std::vector<Template> templates_;
    std::vector<int32_t> order_;
    std::vector<ChainLayer> layers_;
    int64_t swept_budget_ = 0;
};

} // namespace planner
