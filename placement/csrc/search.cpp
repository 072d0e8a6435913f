#include "search.h"

#include <atomic>
#include <cmath>
#include <numeric>
#include <thread>

namespace planner {

namespace {

int32_t root_of(std::vector<int32_t>& parents, int32_t group) {
    while (parents[group] != group) group = parents[group] = parents[parents[group]];
    return group;
}

// The island's groups as bytes: two islands have the same only if they are equal.
std::string key_of(const Groups& island) {
    std::string key;
    const auto put = [&](int32_t value) {
        key.append(reinterpret_cast<const char*>(&value), sizeof value);
    };
    for (const Group& group : island) {
        put(group.config);
        put(static_cast<int32_t>(group.models.size()));
        for (const int32_t model : group.models) put(model);
    }
    return key;
}

} // namespace

std::vector<Groups> islands(const Groups& groups, int32_t num_models) {
    std::vector<int32_t> parents(groups.size());
    std::iota(parents.begin(), parents.end(), 0);
    std::vector<int32_t> first_host(num_models, -1);
    for (int32_t group = 0; group < static_cast<int32_t>(groups.size()); ++group)
        for (const int32_t model : groups[group].models) {
            if (first_host[model] < 0) first_host[model] = group;
            parents[root_of(parents, group)] = root_of(parents, first_host[model]);
        }
    std::vector<int32_t> island_of(groups.size(), -1);
    std::vector<Groups> found;
    for (int32_t group = 0; group < static_cast<int32_t>(groups.size()); ++group) {
        int32_t& island = island_of[root_of(parents, group)];
        if (island < 0) {
            island = static_cast<int32_t>(found.size());
            found.emplace_back();
        }
        found[island].push_back(groups[group]);
    }
    return found;
}

Scorer::Scorer(const Problem& problem, int num_threads, size_t max_remembered)
    : problem_(problem), num_threads_(std::max(1, num_threads)), max_remembered_(max_remembered),
      model_requests_(problem.num_models, 0) {
    for (const int32_t kind : problem.kinds) ++model_requests_[problem.kind_models[kind]];
}

std::vector<Tally> Scorer::score(const std::vector<Groups>& candidates) {
    if (known_.size() > max_remembered_) known_.clear();
    std::vector<std::vector<const std::string*>> keys(candidates.size());
    std::vector<const std::string*> waiting_keys;
    std::vector<Groups> waiting;
    for (size_t index = 0; index < candidates.size(); ++index)
        for (Groups& island : islands(candidates[index], problem_.num_models)) {
            const auto [entry, is_new] = known_.try_emplace(key_of(island));
            keys[index].push_back(&entry->first); // keys stay where they are when others come
            if (!is_new) continue;
            waiting_keys.push_back(&entry->first);
            num_replayed_ += count_requests(island);
            waiting.push_back(std::move(island));
        }
    std::vector<Tally> tallies(waiting.size());
    replay_all(waiting, tallies);
    for (size_t index = 0; index < waiting.size(); ++index)
        known_[*waiting_keys[index]] = tallies[index];
    std::vector<Tally> totals(candidates.size());
    for (size_t index = 0; index < candidates.size(); ++index)
        for (const std::string* key : keys[index]) totals[index].add(known_.at(*key));
    return totals;
}

void Scorer::replay_all(const std::vector<Groups>& waiting, std::vector<Tally>& tallies) const {
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t index = next++; index < waiting.size(); index = next++)
            tallies[index] = replay_island(waiting[index]);
    };
    std::vector<std::thread> threads;
    const size_t wanted = std::min<size_t>(num_threads_, waiting.size());
    for (size_t thread = 1; thread < wanted; ++thread) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
}

int64_t Scorer::count_requests(const Groups& island) const {
    std::vector<bool> is_here(problem_.num_models, false);
    for (const Group& group : island)
        for (const int32_t model : group.models) is_here[model] = true;
    int64_t num_requests = 0;
    for (int32_t model = 0; model < problem_.num_models; ++model)
        if (is_here[model]) num_requests += model_requests_[model];
    return num_requests;
}

Tally Scorer::replay_island(const Groups& island) const {
    const Hosts hosts(problem_, island);
    Clocks clocks(hosts.num_groups());
    Tally tally;
    const auto load = [](int64_t, int32_t, const Offer&) {};
    const auto count = [&](int64_t request, int32_t, const Offer& offered) {
        if (std::isnan(offered.finish_s)) return;
        ++tally.num_met;
        tally.latency_ticks += static_cast<int64_t>(
            (offered.finish_s - problem_.arrivals_s[request]) * kTicksPerSecond);
    };
    replay(problem_, hosts, 0, problem_.first_counted, clocks, load);
    replay(problem_, hosts, problem_.first_counted, problem_.end_counted, clocks, count);
    return tally;
}

} // namespace planner
