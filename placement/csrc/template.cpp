#include "template.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace planner {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Costs that differ by less than this share of them are taken as equal: sums are rounded.
constexpr double kRounding = 1e-11;

// Layouts after a block and the points that reach each; leaves those that no other one beats.
ChainLayer thinned(std::vector<std::vector<ChainPoint>>& reached) {
    ChainLayer layer;
    layer.begins.push_back(0);
    for (auto& points : reached) {
        std::sort(points.begin(), points.end(), [](const ChainPoint& a, const ChainPoint& b) {
            return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
        });
        double least = kNever;
        for (const ChainPoint& point : points) {
            if (point.cost >= least)
                continue;
            least = point.cost;
            layer.points.push_back(point);
        }
        layer.begins.push_back(static_cast<int32_t>(layer.points.size()));
        points.clear();
    }
    return layer;
}

ChainLayer start(int32_t num_layouts) {
    ChainLayer layer;
    for (int32_t layout = 0; layout < num_layouts; ++layout) {
        layer.points.push_back({0, 0.0, -1, -1});
        layer.begins.push_back(layout);
    }
    layer.begins.push_back(num_layouts);
    return layer;
}

// The best point of each range of bytes for each layout, besides the smallest and the cheapest. In
// a range, bytes count too, by its price: else every block would waste up to a range of them.
class Buckets {
  public:
    Buckets(int32_t num_layouts, std::vector<double> prices, int64_t least, int64_t most)
        : prices_(std::move(prices)), least_(least),
          per_byte_(most > least ? prices_.size() / static_cast<double>(most - least) : 0.0),
          best_(num_layouts * prices_.size(), {0, kNever, -1, -1}),
          smallest_(num_layouts, {std::numeric_limits<int64_t>::max(), kNever, -1, -1}),
          cheapest_(num_layouts, {0, kNever, -1, -1}) {}

    void add(int32_t layout, const ChainPoint& point) {
        const auto place = static_cast<size_t>((point.bytes - least_) * per_byte_);
        const size_t bucket = std::min(place, prices_.size() - 1);
        ChainPoint& best = best_[layout * prices_.size() + bucket];
        if (point.cost - best.cost < prices_[bucket] * (best.bytes - point.bytes))
            best = point;
        ChainPoint& smallest = smallest_[layout];
        if (point.bytes < smallest.bytes ||
            (point.bytes == smallest.bytes && point.cost < smallest.cost))
            smallest = point;
        ChainPoint& cheapest = cheapest_[layout];
        if (point.cost < cheapest.cost ||
            (point.cost == cheapest.cost && point.bytes < cheapest.bytes))
            cheapest = point;
    }

    ChainLayer layer() const {
        std::vector<std::vector<ChainPoint>> reached(smallest_.size());
        const auto keep = [&reached](size_t layout, const ChainPoint& point) {
            if (point.cost < kNever)
                reached[layout].push_back(point);
        };
        for (size_t layout = 0; layout < smallest_.size(); ++layout) {
            for (size_t bucket = 0; bucket < prices_.size(); ++bucket)
                keep(layout, best_[layout * prices_.size() + bucket]);
            keep(layout, smallest_[layout]);
            keep(layout, cheapest_[layout]);
        }
        return thinned(reached);
    }

  private:
    std::vector<double> prices_;
    int64_t least_;
    double per_byte_;
    std::vector<ChainPoint> best_;
    std::vector<ChainPoint> smallest_;
    std::vector<ChainPoint> cheapest_;
};

// What a byte less costs along the front of all points, in equal ranges of bytes: the slopes of
// its lower hull. Blocks are alike, so after one block more they are about the same.
std::vector<double> byte_prices(const ChainLayer& layer, int32_t num_ranges) {
    std::vector<std::vector<ChainPoint>> all{layer.points};
    std::vector<ChainPoint> hull;
    const auto slope = [](const ChainPoint& a, const ChainPoint& b) {
        return (a.cost - b.cost) / static_cast<double>(b.bytes - a.bytes);
    };
    for (const ChainPoint& point : thinned(all).points) {
        while (hull.size() > 1 &&
               slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), point))
            hull.pop_back();
        hull.push_back(point);
    }
    std::vector<double> prices(num_ranges, 0.0);
    if (hull.size() < 2)
        return prices;
    const double width = static_cast<double>(hull.back().bytes - hull.front().bytes) / num_ranges;
    size_t edge = 0;
    for (int32_t range = 0; range < num_ranges; ++range) {
        const double middle = hull.front().bytes + (range + 0.5) * width;
        while (edge + 2 < hull.size() && hull[edge + 1].bytes < middle)
            ++edge;
        prices[range] = slope(hull[edge], hull[edge + 1]);
    }
    return prices;
}

// The range of bytes that matters after a block: from its smallest point to the cheapest ones.
std::pair<int64_t, int64_t> byte_range(const ChainLayer& before, const Template& block) {
    int64_t least = std::numeric_limits<int64_t>::max();
    std::vector<ChainPoint> cheapest(block.num_targets, {0, kNever, -1, -1});
    for (const Way& way : block.ways) {
        const int32_t first = before.begins[way.source], end = before.begins[way.source + 1];
        if (first == end)
            continue;
        least = std::min(least, before.points[first].bytes + way.bytes);
        const ChainPoint& last = before.points[end - 1];
        if (last.cost + way.cost < cheapest[way.target].cost)
            cheapest[way.target] = {last.bytes + way.bytes, last.cost + way.cost, -1, -1};
    }
    int64_t most = least;
    for (const ChainPoint& point : cheapest)
        most = std::max(most, point.bytes);
    return {least, most};
}

ChainLayer swept(const ChainLayer& before, const Template& block, int64_t budget,
                 int32_t num_buckets) {
    const auto [least, most] = byte_range(before, block);
    Buckets buckets(block.num_targets, byte_prices(before, num_buckets), least,
                    std::min(most, budget));
    for (size_t number = 0; number < block.ways.size(); ++number) {
        const Way& way = block.ways[number];
        for (int32_t parent = before.begins[way.source]; parent < before.begins[way.source + 1];
             ++parent) {
            const ChainPoint& point = before.points[parent];
            if (point.bytes + way.bytes > budget)
                break;
            buckets.add(way.target, {point.bytes + way.bytes, point.cost + way.cost,
                                     static_cast<int32_t>(number), parent});
        }
    }
    return buckets.layer();
}

// At most so many points of a front, evenly spread over bytes on a logarithmic scale.
std::vector<ChainPoint> picked(const std::vector<ChainPoint>& front, int32_t max_points) {
    if (static_cast<int32_t>(front.size()) <= max_points)
        return front;
    std::vector<ChainPoint> few{front.front()};
    const double growth = static_cast<double>(front.back().bytes) / front.front().bytes;
    size_t place = 0;
    for (int32_t pick = 1; pick < max_points; ++pick) {
        const double limit =
            front.front().bytes * std::pow(growth, static_cast<double>(pick) / (max_points - 1));
        while (place + 1 < front.size() && front[place + 1].bytes <= limit * (1 + kRounding))
            ++place;
        if (front[place].bytes != few.back().bytes)
            few.push_back(front[place]);
    }
    return few;
}

} // namespace

// The least weighed cost from each layout before each block to the end, and the first way of it.
struct Chain::Potentials {
    std::vector<std::vector<double>> least;
    std::vector<std::vector<int32_t>> ways;
};

Chain::Chain(std::vector<Template> templates, std::vector<int32_t> order)
    : templates_(std::move(templates)), order_(std::move(order)) {
    if (order_.empty())
        throw std::invalid_argument("a chain needs a block");
    for (const int32_t number : order_)
        if (number < 0 || number >= static_cast<int32_t>(templates_.size()))
            throw std::invalid_argument("a block has no template");
    for (size_t block = 1; block < order_.size(); ++block)
        if (at(block).num_sources != at(block - 1).num_targets)
            throw std::invalid_argument("a block takes other layouts than the one before makes");
}

int32_t Chain::num_layouts(size_t block) const {
    return block < order_.size() ? at(block).num_sources : at(block - 1).num_targets;
}

Chain::Potentials Chain::to_go(double cost_weight, double byte_weight) const {
    Potentials potentials;
    potentials.least.resize(order_.size() + 1);
    potentials.ways.resize(order_.size());
    potentials.least.back().assign(num_layouts(order_.size()), 0.0);
    for (size_t block = order_.size(); block-- > 0;) {
        auto& least = potentials.least[block];
        auto& ways = potentials.ways[block];
        const auto& after = potentials.least[block + 1];
        least.assign(num_layouts(block), kNever);
        ways.assign(num_layouts(block), -1);
        for (size_t number = 0; number < at(block).ways.size(); ++number) {
            const Way& way = at(block).ways[number];
            const double value =
                cost_weight * way.cost + byte_weight * way.bytes + after[way.target];
            if (value < least[way.source]) {
                least[way.source] = value;
                ways[way.source] = static_cast<int32_t>(number);
            }
        }
    }
    return potentials;
}

ChainPlan Chain::walk(const Potentials& potentials) const {
    const auto& first = potentials.least.front();
    auto layout = static_cast<int32_t>(std::min_element(first.begin(), first.end()) -
                                       first.begin());
    ChainPlan plan;
    plan.cost = 0.0;
    for (size_t block = 0; block < order_.size(); ++block) {
        const int32_t number = potentials.ways[block][layout];
        if (number < 0)
            return {};
        const Way& way = at(block).ways[number];
        plan.cost += way.cost;
        plan.bytes += way.bytes;
        plan.ways.push_back(number);
        layout = way.target;
    }
    return plan;
}

int64_t Chain::min_bytes() const { return walk(to_go(0.0, 1.0)).bytes; }

// The price of a byte at which bytes run out gives a bound on what any completion costs
// (Lagrange). Chains are then searched up to a cost that grows until one is found; what is beyond
// it by its bound is never looked at, so that the first one found is the best.
ChainPlan Chain::solve(int64_t budget, double limit) const {
    const Potentials sizes = to_go(0.0, 1.0);
    ChainPlan fitting = walk(sizes);
    if (fitting.ways.empty() || fitting.bytes > budget)
        return {};
    Potentials potentials = to_go(1.0, 0.0);
    ChainPlan cheap = walk(potentials);
    double price = 0.0;
    double bound = cheap.cost;
    if (cheap.bytes <= budget)
        fitting = cheap;
    while (cheap.bytes > budget) {
        const double next = (fitting.cost - cheap.cost) / (cheap.bytes - fitting.bytes);
        Potentials priced = to_go(1.0, next);
        const ChainPlan plan = walk(priced);
        const double value = plan.cost + next * plan.bytes;
        const bool is_edge = value >= (cheap.cost + next * cheap.bytes) * (1 - kRounding);
        price = next;
        bound = value - next * budget;
        potentials = std::move(priced);
        if (is_edge)
            break;
        (plan.bytes <= budget ? fitting : cheap) = plan;
    }
    if (bound >= limit)
        return {};
    // A chain that leaves bytes over may cost more than its bound: it is the best one only if it
    // doesn't cost more than the search looked up to, but then nothing beyond it needs a look.
    double most = std::min(fitting.cost * (1 + kRounding), limit);
    for (double room = fitting.cost * 1e-4;; room *= 4) {
        const double cutoff = std::min(bound + room, most);
        const ChainPlan plan = search(potentials, price, budget, cutoff, sizes.least);
        if (plan.cost <= cutoff || cutoff >= most)
            return plan.cost < limit ? plan : ChainPlan{};
        most = std::min(most, plan.cost * (1 + kRounding));
    }
}

ChainPlan Chain::search(const Potentials& potentials, double price, int64_t budget, double cutoff,
                        const std::vector<std::vector<double>>& bytes_to_go) const {
    const double most = cutoff + price * budget;
    std::vector<ChainLayer> layers{start(num_layouts(0))};
    for (size_t block = 0; block < order_.size(); ++block) {
        const Template& ways = at(block);
        const ChainLayer& before = layers.back();
        std::vector<std::vector<ChainPoint>> reached(ways.num_targets);
        for (size_t number = 0; number < ways.ways.size(); ++number) {
            const Way& way = ways.ways[number];
            const double left = most - potentials.least[block + 1][way.target] - way.cost -
                                price * way.bytes;
            const auto room = static_cast<double>(budget) - way.bytes -
                              bytes_to_go[block + 1][way.target];
            for (int32_t parent = before.begins[way.source];
                 parent < before.begins[way.source + 1]; ++parent) {
                const ChainPoint& point = before.points[parent];
                if (static_cast<double>(point.bytes) > room)
                    break;
                if (point.cost + price * point.bytes <= left)
                    reached[way.target].push_back({point.bytes + way.bytes, point.cost + way.cost,
                                                   static_cast<int32_t>(number), parent});
            }
        }
        layers.push_back(thinned(reached));
    }
    const auto& last = layers.back().points;
    const auto best = std::min_element(
        last.begin(), last.end(),
        [](const ChainPoint& a, const ChainPoint& b) { return a.cost < b.cost; });
    if (best == last.end())
        return {};
    return {best->cost, best->bytes,
            trace(layers, order_.size(), static_cast<int32_t>(best - last.begin()))};
}

std::vector<int32_t> Chain::trace(const std::vector<ChainLayer>& layers, size_t length,
                                  int32_t point) const {
    std::vector<int32_t> ways(length);
    for (size_t block = length; block > 0; --block) {
        const ChainPoint& reached = layers[block].points[point];
        ways[block - 1] = reached.way;
        point = reached.parent;
    }
    return ways;
}

void Chain::sweep(int64_t budget, int32_t num_buckets) {
    swept_budget_ = budget;
    layers_.assign(1, start(num_layouts(0)));
    for (size_t block = 0; block < order_.size(); ++block)
        layers_.push_back(swept(layers_.back(), at(block), budget, num_buckets));
}

std::vector<ChainPlan> Chain::front(int32_t length, int32_t tail, int32_t max_points) const {
    if (length < 0 || length >= static_cast<int32_t>(layers_.size()) || max_points < 2)
        throw std::invalid_argument("the sweep has no such front");
    if (tail >= static_cast<int32_t>(templates_.size()))
        throw std::invalid_argument("the tail has no template");
    const ChainLayer& layer = layers_[length];
    std::vector<std::vector<ChainPoint>> reached(1);
    if (tail < 0) {
        for (int32_t point = 0; point < static_cast<int32_t>(layer.points.size()); ++point)
            reached[0].push_back({layer.points[point].bytes, layer.points[point].cost, -1, point});
    } else {
        const auto& ways = templates_[tail].ways;
        for (size_t number = 0; number < ways.size(); ++number) {
            const int32_t source = ways[number].source;
            for (int32_t point = layer.begins[source]; point < layer.begins[source + 1]; ++point) {
                const int64_t bytes = layer.points[point].bytes + ways[number].bytes;
                if (bytes <= swept_budget_)
                    reached[0].push_back({bytes, layer.points[point].cost + ways[number].cost,
                                          static_cast<int32_t>(number), point});
            }
        }
    }
    std::vector<ChainPlan> plans;
    for (const ChainPoint& point : picked(thinned(reached).points, max_points)) {
        plans.push_back({point.cost, point.bytes, trace(layers_, length, point.parent)});
        if (tail >= 0)
            plans.back().ways.push_back(point.way);
    }
    return plans;
}

} // namespace planner
