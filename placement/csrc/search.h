// Scores many similar placements, replaying only what no earlier one had.
//
// Groups that share models, directly or through others, make an island: what it serves depends on
// nothing outside of it. A candidate that differs from another in one group therefore has the
// other's score in all islands but one, and equal islands are replayed once.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>

#include "requests.h"

namespace planner {

// Sums over the counted requests that met their objective. Latency is in whole ticks, so that
// islands add up to the same sum in any order.
struct Tally {
    int64_t num_met = 0;
    int64_t latency_ticks = 0;

    void add(const Tally& other) {
        num_met += other.num_met;
        latency_ticks += other.latency_ticks;
    }
};

constexpr double kTicksPerSecond = 1 << 30;

// Groups that share models with each other and with no others, in the order of the placement.
std::vector<Groups> islands(const Groups& groups, int32_t num_models);

class Scorer {
  public:
    // The problem must outlive the scorer. Beyond max_remembered islands all are forgotten.
    Scorer(const Problem& problem, int num_threads, size_t max_remembered);

    std::vector<Tally> score(const std::vector<Groups>& candidates);

    // Requests replayed so far: those of the models of each island that was not yet known. It
    // depends on the candidates alone, not on threads, so it can bound a reproducible search.
    int64_t num_replayed() const { return num_replayed_; }

  private:
    Tally replay_island(const Groups& island) const;
    int64_t count_requests(const Groups& island) const;
    void replay_all(const std::vector<Groups>& waiting, std::vector<Tally>& tallies) const;

    const Problem& problem_;
    const int num_threads_;
    const size_t max_remembered_;
    std::vector<int64_t> model_requests_;
    std::unordered_map<std::string, Tally> known_;
    int64_t num_replayed_ = 0;
};

} // namespace planner
