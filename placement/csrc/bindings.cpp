// The planner's compiled parts, as Python sees them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pipelines.h"
#include "requests.h"
#include "search.h"
#include "template.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class To, class From>
std::vector<To> to_vector(const Array<From>& array) {
    return std::vector<To>(array.data(), array.data() + array.size());
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Candidates laid end to end: candidate i has groups [groups[i], groups[i+1]), group j of all has
// the models [offsets[j], offsets[j+1]).
std::vector<planner::Groups> to_candidates(const Array<int32_t>& groups,
                                           const Array<int32_t>& configs,
                                           const Array<int32_t>& offsets,
                                           const Array<int32_t>& models) {
    std::vector<planner::Groups> candidates(groups.size() - 1);
    for (size_t index = 0; index < candidates.size(); ++index)
        for (int32_t group = groups.data()[index]; group < groups.data()[index + 1]; ++group)
            candidates[index].push_back({configs.data()[group],
                                         {models.data() + offsets.data()[group],
                                          models.data() + offsets.data()[group + 1]}});
    return candidates;
}

planner::Problem to_problem(const Array<double>& arrivals_s, const Array<int32_t>& kinds,
                            const Array<int32_t>& kind_models, const Array<float>& slo_s,
                            int32_t num_models, const Array<float>& stages_s,
                            const Array<int32_t>& num_stages, const Array<float>& delay_s,
                            double overhead_s, int64_t num_uncounted) {
    planner::Problem problem;
    problem.arrivals_s = to_vector<double>(arrivals_s);
    problem.kinds = to_vector<int32_t>(kinds);
    problem.kind_models = to_vector<int32_t>(kind_models);
    problem.slo_s = to_vector<double>(slo_s);
    problem.num_models = num_models;
    problem.stages_s = to_vector<float>(stages_s);
    problem.num_stages = to_vector<int32_t>(num_stages);
    problem.max_stages = static_cast<int32_t>(stages_s.shape(2));
    problem.delay_s = to_vector<float>(delay_s);
    problem.overhead_s = overhead_s;
    problem.first_counted = num_uncounted;
    problem.end_counted = problem.num_requests() - num_uncounted;
    return problem;
}

py::list score_all(const planner::Problem& problem, const Array<int32_t>& groups,
                   const Array<int32_t>& configs, const Array<int32_t>& offsets,
                   const Array<int32_t>& models, int num_threads) {
    const auto candidates = to_candidates(groups, configs, offsets, models);
    std::vector<planner::Score> scores;
    {
        py::gil_scoped_release release;
        scores = planner::score_all(problem, candidates, num_threads);
    }
    py::list result;
    for (const auto& one : scores)
        result.append(
            py::make_tuple(to_array(one.num_met), to_array(one.num_served), one.latency_s));
    return result;
}

py::tuple serve(const planner::Problem& problem, const Array<int32_t>& groups,
                const Array<int32_t>& configs, const Array<int32_t>& offsets,
                const Array<int32_t>& models) {
    const auto candidates = to_candidates(groups, configs, offsets, models);
    py::array_t<double> finish_s(problem.num_requests());
    py::array_t<int32_t> served_by(problem.num_requests());
    double* const finish = finish_s.mutable_data();
    int32_t* const served = served_by.mutable_data();
    {
        py::gil_scoped_release release;
        planner::serve(problem, candidates.front(), finish, served);
    }
    return py::make_tuple(finish_s, served_by);
}

void bind_requests(py::module_& module) {
    module.attr("MAX_STAGES") = planner::kMaxStages;
    py::class_<planner::Problem>(module, "Problem")
        .def(py::init(&to_problem), py::kw_only(), py::arg("arrivals_s"), py::arg("kinds"),
             py::arg("kind_models"), py::arg("slo_s"), py::arg("num_models"), py::arg("stages_s"),
             py::arg("num_stages"), py::arg("delay_s"), py::arg("overhead_s"),
             py::arg("num_uncounted"));
    module.def("score_all", &score_all);
    module.def("serve", &serve);
}

// How many requests each candidate met the objectives of, and the sum of their latencies.
py::tuple score_candidates(planner::Scorer& scorer, const Array<int32_t>& groups,
                           const Array<int32_t>& configs, const Array<int32_t>& offsets,
                           const Array<int32_t>& models) {
    const auto candidates = to_candidates(groups, configs, offsets, models);
    std::vector<planner::Tally> tallies;
    {
        py::gil_scoped_release release;
        tallies = scorer.score(candidates);
    }
    std::vector<int64_t> num_met;
    std::vector<double> latency_s;
    for (const planner::Tally& tally : tallies) {
        num_met.push_back(tally.num_met);
        latency_s.push_back(static_cast<double>(tally.latency_ticks) / planner::kTicksPerSecond);
    }
    return py::make_tuple(to_array(num_met), to_array(latency_s));
}

void bind_search(py::module_& module) {
    py::class_<planner::Scorer>(module, "Scorer")
        .def(py::init<const planner::Problem&, int, size_t>(), py::arg("problem"),
             py::arg("num_threads"), py::arg("max_remembered"), py::keep_alive<1, 2>())
        .def("score", &score_candidates)
        .def_property_readonly("num_replayed", &planner::Scorer::num_replayed);
}

planner::StageTable to_stage_table(int num_layers, int num_devices, int devices_per_node,
                                   int max_stages, const Array<int32_t>& mesh_devices,
                                   const Array<int32_t>& classes, const Array<int32_t>& offsets,
                                   const Array<double>& ticks, const Array<int64_t>& bytes,
                                   double inside_ticks, double outside_ticks) {
    return {num_layers,
            num_devices,
            devices_per_node,
            max_stages,
            to_vector<int32_t>(mesh_devices),
            to_vector<int32_t>(classes),
            to_vector<int32_t>(offsets),
            to_vector<double>(ticks),
            to_vector<int64_t>(bytes),
            inside_ticks,
            outside_ticks};
}

// Of each pipeline, its stages: first layer, end, mesh, option.
py::list pareto_pipelines(const planner::StageTable& table, int64_t max_bytes, double tolerance) {
    std::vector<planner::Pipeline> found;
    {
        py::gil_scoped_release release;
        found = planner::pareto_pipelines(table, max_bytes, tolerance);
    }
    py::list front;
    for (const planner::Pipeline& one : found) {
        py::list stages;
        for (const planner::PipelineStage& stage : one.stages)
            stages.append(py::make_tuple(stage.first, stage.end, stage.mesh, stage.option));
        front.append(stages);
    }
    return front;
}

void bind_pipelines(py::module_& module) {
    py::class_<planner::StageTable>(module, "StageTable")
        .def(py::init(&to_stage_table), py::kw_only(), py::arg("num_layers"),
             py::arg("num_devices"), py::arg("devices_per_node"), py::arg("max_stages"),
             py::arg("mesh_devices"), py::arg("classes"), py::arg("offsets"), py::arg("ticks"),
             py::arg("stage_bytes"), py::arg("inside_ticks"), py::arg("outside_ticks"));
    module.def("pareto_pipelines", &pareto_pipelines);
}

// A block's ways as arrays: source, target, bytes and cost of each.
using Ways = std::tuple<int32_t, int32_t, Array<int32_t>, Array<int32_t>, Array<int64_t>,
                        Array<double>>;

planner::Chain to_chain(const std::vector<Ways>& templates, std::vector<int32_t> order) {
    std::vector<planner::Template> kinds;
    for (const auto& [num_sources, num_targets, sources, targets, bytes, costs] : templates) {
        planner::Template kind{num_sources, num_targets, {}};
        if (targets.size() != sources.size() || bytes.size() != sources.size() ||
            costs.size() != sources.size())
            throw std::invalid_argument("arrays of ways are not of one length");
        for (py::ssize_t way = 0; way < sources.size(); ++way) {
            const int32_t source = sources.data()[way], target = targets.data()[way];
            if (source < 0 || source >= num_sources || target < 0 || target >= num_targets)
                throw std::invalid_argument("a way leads to a layout that there is not");
            kind.ways.push_back({source, target, bytes.data()[way], costs.data()[way]});
        }
        kinds.push_back(std::move(kind));
    }
    return planner::Chain(std::move(kinds), std::move(order));
}

py::tuple to_tuple(const planner::ChainPlan& plan) {
    return py::make_tuple(plan.cost, plan.bytes, plan.ways);
}

void bind_chains(py::module_& module) {
    py::class_<planner::Chain>(module, "Chain")
        .def(py::init(&to_chain), py::arg("templates"), py::arg("order"))
        .def("min_bytes", &planner::Chain::min_bytes)
        .def(
            "solve",
            [](const planner::Chain& chain, int64_t budget, double limit) {
                return to_tuple(chain.solve(budget, limit));
            },
            py::arg("budget"), py::arg("limit"))
        .def("sweep", &planner::Chain::sweep, py::arg("budget"), py::arg("num_buckets"))
        .def(
            "front",
            [](const planner::Chain& chain, int32_t length, int32_t tail, int32_t max_points) {
                py::list front;
                for (const auto& plan : chain.front(length, tail, max_points))
                    front.append(to_tuple(plan));
                return front;
            },
            py::arg("length"), py::arg("tail"), py::arg("max_points"));
}

} // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Request-level simulation and search, compiled.";
    bind_requests(module);
    bind_search(module);
    bind_pipelines(module);
    bind_chains(module);
}
