// Ways to cut a model's layers into pipeline stages over devices: all that are worth having.
#pragma once

#include <cstdint>
#include <vector>

namespace planner {

// What stages cost. A range of layers on a mesh is of a class; a class has options, by ascending
// ticks. Ticks are whole numbers, so that equal sums are equal in whatever order they are added.
struct StageTable {
    int num_layers = 0;
    int num_devices = 0;
    int devices_per_node = 0;
    int max_stages = 0;
    std::vector<int32_t> mesh_devices;
    std::vector<int32_t> classes; // [meshes][num_layers (first)][num_layers + 1 (end)]
    std::vector<int32_t> offsets; // [classes + 1], into what follows
    std::vector<double> ticks;
    std::vector<int64_t> bytes;
    double inside_ticks = 0.0;  // to receive from a stage of the same node
    double outside_ticks = 0.0; // and from one of another
};

// `option` counts from the first one of the stage's class.
struct PipelineStage {
    int32_t first, end, mesh, option;
};

struct Pipeline {
    std::vector<PipelineStage> stages;
    double sum_ticks = 0.0;
    double slowest_ticks = 0.0;
    int64_t bytes = 0; // of the fullest device
};

// Every pipeline over all devices that no other beats in (sum, slowest, bytes), by ascending sum;
// one of those that are equal in all three. Beyond `max_bytes` none fits. With a tolerance, the
// next pipeline's slowest stage or bytes are less by more than that share.
std::vector<Pipeline> pareto_pipelines(const StageTable& table, int64_t max_bytes,
                                       double tolerance);

} // namespace planner
