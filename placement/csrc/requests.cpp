#include "requests.h"

#include <atomic>
#include <cmath>
#include <thread>

namespace planner {

namespace {

bool is_possible(const Host& host) {
    for (int32_t stage = 0; stage < host.num_stages; ++stage)
        if (!std::isfinite(host.stages_s[stage])) return false;
    return true;
}

// The groups that host each model, in the order of the groups.
std::vector<std::vector<int32_t>> groups_of_models(const Problem& problem, const Groups& groups) {
    std::vector<std::vector<int32_t>> of_models(problem.num_models);
    for (size_t group = 0; group < groups.size(); ++group)
        for (const int32_t model : groups[group].models)
            of_models[model].push_back(static_cast<int32_t>(group));
    return of_models;
}

} // namespace

Hosts::Hosts(const Problem& problem, const Groups& groups)
    : num_groups_(static_cast<int32_t>(groups.size())) {
    const auto of_models = groups_of_models(problem, groups);
    const int32_t num_kinds = problem.num_kinds();
    offsets_.reserve(num_kinds + 1);
    offsets_.push_back(0);
    for (int32_t kind = 0; kind < num_kinds; ++kind) {
        for (const int32_t group : of_models[problem.kind_models[kind]]) {
            const int32_t config = groups[group].config;
            const int64_t row = static_cast<int64_t>(config) * num_kinds + kind;
            const Host host{group, problem.num_stages[config],
                            problem.stages_s.data() + row * problem.max_stages,
                            static_cast<double>(problem.delay_s[row])};
            if (is_possible(host)) hosts_.push_back(host);
        }
        offsets_.push_back(static_cast<int32_t>(hosts_.size()));
    }
}

Score score(const Problem& problem, const Groups& groups) {
    const Hosts hosts(problem, groups);
    Clocks clocks(hosts.num_groups());
    Score result;
    result.num_met.assign(problem.num_models, 0);
    result.num_served.assign(groups.size(), 0);
    const auto load = [](int64_t, int32_t, const Offer&) {};
    const auto count = [&](int64_t request, int32_t kind, const Offer& offered) {
        if (std::isnan(offered.finish_s)) return;
        ++result.num_met[problem.kind_models[kind]];
        ++result.num_served[offered.group];
        result.latency_s += offered.finish_s - problem.arrivals_s[request];
    };
    // What arrives after the last counted request can't change it.
    replay(problem, hosts, 0, problem.first_counted, clocks, load);
    replay(problem, hosts, problem.first_counted, problem.end_counted, clocks, count);
    return result;
}

std::vector<Score> score_all(const Problem& problem, const std::vector<Groups>& candidates,
                             int num_threads) {
    std::vector<Score> scores(candidates.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t index = next++; index < candidates.size(); index = next++)
            scores[index] = score(problem, candidates[index]);
    };
    const size_t most = std::max<size_t>(1, candidates.size());
    const size_t wanted = std::min<size_t>(std::max(1, num_threads), most);
    std::vector<std::thread> threads;
    for (size_t thread = 1; thread < wanted; ++thread) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    return scores;
}

void serve(const Problem& problem, const Groups& groups, double* finish_s, int32_t* served_by) {
    const Hosts hosts(problem, groups);
    Clocks clocks(hosts.num_groups());
    const auto note = [&](int64_t request, int32_t, const Offer& offered) {
        finish_s[request] = offered.finish_s;
        served_by[request] = std::isnan(offered.finish_s) ? -1 : offered.group;
    };
    replay(problem, hosts, 0, problem.num_requests(), clocks, note);
}

} // namespace planner
