// Replays requests on device groups: first come, first served, admitted or refused at arrival.
//
// A group is a pipeline of stages that serve in turn. A request goes to the group, of those that
// host its model, whose last stage is free first; it is refused if it would end too late there.
// A refused request occupies nothing, so one clock for each stage is all there is to keep.
// Source: AlpaServe (Li et al., OSDI 2023), section 5.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

namespace planner {

constexpr int kMaxStages = 64;

// Requests in the order of their arrivals, and how long each kind takes on each configuration.
// Requests from first_counted to end_counted make up a Score; the others only load the groups.
struct Problem {
    std::vector<double> arrivals_s;
    std::vector<int32_t> kinds;
    std::vector<int32_t> kind_models;
    std::vector<double> slo_s;       // of each kind; singles, widened once
    std::vector<int32_t> num_stages; // of each configuration
    std::vector<float> stages_s;     // [num_configs, num_kinds, max_stages]
    std::vector<float> delay_s;      // [num_configs, num_kinds]
    double overhead_s = 0.0;
    int64_t first_counted = 0;
    int64_t end_counted = 0;
    int32_t num_models = 0;
    int32_t max_stages = 0;

    int32_t num_kinds() const { return static_cast<int32_t>(kind_models.size()); }
    int32_t num_configs() const { return static_cast<int32_t>(num_stages.size()); }
    int64_t num_requests() const { return static_cast<int64_t>(arrivals_s.size()); }
};

struct Group {
    int32_t config;
    std::vector<int32_t> models;
};

using Groups = std::vector<Group>;

// One group that a kind may go to, and how long the kind takes there.
struct Host {
    int32_t group;
    int32_t num_stages;
    const float* stages_s;
    double delay_s;
};

// Of each kind the groups that host it, in the order of the groups.
class Hosts {
  public:
    Hosts(const Problem& problem, const Groups& groups);

    const Host* begin(int32_t kind) const { return hosts_.data() + offsets_[kind]; }
    const Host* end(int32_t kind) const { return hosts_.data() + offsets_[kind + 1]; }
    int32_t num_groups() const { return num_groups_; }

  private:
    int32_t num_groups_;
    std::vector<int32_t> offsets_;
    std::vector<Host> hosts_;
};

// When the stages of each group are free; all are from the start.
struct Clocks {
    explicit Clocks(int32_t num_groups) : last(num_groups, 0.0), stages(num_groups) {}

    std::vector<double> last; // of each group's last stage: these alone decide where to go
    std::vector<std::array<double, kMaxStages>> stages;
};

// Offers one request to the group that is free first: when it ends there, and which group it is.
struct Offer {
    double finish_s; // nan if refused
    int32_t group;   // -1 if no group hosts the kind
};

inline Offer offer(const Host* host, const Host* end, double arrival_s, double slo_s,
                   double overhead_s, Clocks& clocks) {
    if (host == end) return {std::numeric_limits<double>::quiet_NaN(), -1};
    const Host* best = host;
    double soonest = clocks.last[host->group];
    while (++host != end) {
        const double last = clocks.last[host->group];
        if (last < soonest) {
            soonest = last;
            best = host;
        }
    }
    std::array<double, kMaxStages>& stages = clocks.stages[best->group];
    std::array<double, kMaxStages> after;
    double now = arrival_s;
    for (int32_t stage = 0; stage < best->num_stages; ++stage) {
        now = std::max(now, stages[stage]) + static_cast<double>(best->stages_s[stage]);
        after[stage] = now;
    }
    const double finish_s = now + best->delay_s + overhead_s;
    if (!(finish_s - arrival_s <= slo_s))
        return {std::numeric_limits<double>::quiet_NaN(), best->group};
    std::copy_n(after.begin(), best->num_stages, stages.begin());
    clocks.last[best->group] = now;
    return {finish_s, best->group};
}

// Replays requests [first, end) of the problem; take(request, kind, offer) sees each in turn.
template <class Take>
void replay(const Problem& problem, const Hosts& hosts, int64_t first, int64_t end, Clocks& clocks,
            Take&& take) {
    const double* arrivals_s = problem.arrivals_s.data();
    const int32_t* kinds = problem.kinds.data();
    const double* slo_s = problem.slo_s.data();
    const double overhead_s = problem.overhead_s;
    for (int64_t request = first; request < end; ++request) {
        const int32_t kind = kinds[request];
        take(request, kind,
             offer(hosts.begin(kind), hosts.end(kind), arrivals_s[request], slo_s[kind],
                   overhead_s, clocks));
    }
}

// What came of the counted requests: how many of each model met their objective, how many each
// group served, and the sum of those requests' latencies.
struct Score {
    std::vector<int32_t> num_met;
    std::vector<int32_t> num_served;
    double latency_s = 0.0;
};

Score score(const Problem& problem, const Groups& groups);

// Scores candidates on num_threads threads.
std::vector<Score> score_all(const Problem& problem, const std::vector<Groups>& candidates,
                             int num_threads);

// When each request ends (nan if refused), and its group (-1 if refused).
void serve(const Problem& problem, const Groups& groups, double* finish_s, int32_t* served_by);

} // namespace planner
