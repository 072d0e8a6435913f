// For bounds on the slowest stage and on the bytes, a dynamic program finds the smallest sum. Each
// answer leaves two narrower pairs of bounds to ask about, so that a front of N pipelines takes
// about 2 N dynamic programs, whatever the number of possible pipelines is.
//
// Source: Alpa (Zheng et al., OSDI 2022), section 5.2, for the recurrence; Daechert and Klamroth
// (2015), for the search of a front of three objectives by its upper bounds.
#include "pipelines.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

namespace planner {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// The stages of an answer take less than `ticks` each, and less than `bytes`.
struct Bounds {
    double ticks;
    int64_t bytes;
};

struct Question {
    Bounds bounds;
    std::optional<Pipeline> answer;
};

class Slicer {
  public:
    explicit Slicer(const StageTable& table)
        : table_(table), num_meshes_(static_cast<int>(table.mesh_devices.size())),
          width_(table.num_layers + 1) {
        const size_t cells = static_cast<size_t>(num_meshes_) * table.num_layers * width_;
        for (auto& costs : costs_)
            costs.assign(cells, kNever);
    }

    // The pipeline of the smallest sum within the bounds.
    std::optional<Pipeline> solve(const Bounds& bounds) {
        price(bounds);
        auto found = slice(0);
        const bool is_long =
            found && static_cast<int>(found->stages.size()) > table_.max_stages;
        return is_long ? slice(table_.max_stages) : found;
    }

  private:
    const StageTable& table_;
    int num_meshes_;
    int width_;
    // What each range of layers takes at best, by where its input comes from.
    std::vector<double> costs_[2];
    std::vector<int32_t> options_[2];
    std::vector<double> best_; // [stage counts][devices + 1][width]

    bool is_outside(int device) const { return device % table_.devices_per_node == 0; }

    double receive_ticks(int first, bool outside) const {
        return first == 0 ? 0.0 : outside ? table_.outside_ticks : table_.inside_ticks;
    }

    // No stage within a node lies across two; one of whole nodes begins with a node.
    bool is_allowed(int device, int mesh) const {
        const int size = table_.mesh_devices[mesh], node = table_.devices_per_node;
        if (device + size > table_.num_devices)
            return false;
        return size > node ? device % node == 0 : device / node == (device + size - 1) / node;
    }

    size_t cell(int mesh, int first) const {
        return (static_cast<size_t>(mesh) * table_.num_layers + first) * width_;
    }

    double* row(int count, int device) {
        return &best_[(static_cast<size_t>(count) * (table_.num_devices + 1) + device) * width_];
    }

    // The fastest option of a class whose bytes are within the bounds; -1 if there is none.
    int fastest(int32_t kind, int64_t bytes) const {
        if (kind < 0)
            return -1;
        for (int32_t at = table_.offsets[kind]; at < table_.offsets[kind + 1]; ++at)
            if (table_.bytes[at] < bytes)
                return at;
        return -1;
    }

    void price(const Bounds& bounds) {
        const size_t num_classes = table_.offsets.size() - 1;
        std::vector<double> ticks(num_classes, kNever);
        for (size_t kind = 0; kind < num_classes; ++kind)
            if (const int at = fastest(static_cast<int32_t>(kind), bounds.bytes); at >= 0)
                ticks[kind] = table_.ticks[at];
        for (int outside = 0; outside < 2; ++outside)
            for (int mesh = 0; mesh < num_meshes_; ++mesh)
                for (int first = 0; first < table_.num_layers; ++first) {
                    const double more = receive_ticks(first, outside != 0);
                    const size_t base = cell(mesh, first);
                    for (int end = first + 1; end < width_; ++end) {
                        const int32_t kind = table_.classes[base + end];
                        const double all = kind < 0 ? kNever : ticks[kind] + more;
                        costs_[outside][base + end] = all < bounds.ticks ? all : kNever;
                    }
                }
        bytes_ = bounds.bytes;
    }

    // The best with at most `num_counts` stages; without counting them if that is 0.
    std::optional<Pipeline> slice(int num_counts) {
        const bool counts = num_counts > 0;
        const int levels = num_counts + 1;
        best_.assign(static_cast<size_t>(levels) * (table_.num_devices + 1) * width_, kNever);
        row(0, 0)[0] = 0.0;
        for (int first = 0; first < table_.num_layers; ++first)
            for (int count = 0; count < (counts ? num_counts : 1); ++count)
                for (int device = 0; device < table_.num_devices; ++device)
                    if (row(count, device)[first] < kNever)
                        extend(first, device, count, counts ? count + 1 : 0);
        int last = -1;
        double least = kNever;
        for (int level = 0; level < levels; ++level)
            if (const double sum = row(level, table_.num_devices)[width_ - 1]; sum < least) {
                least = sum;
                last = level;
            }
        return last < 0 ? std::nullopt : std::optional(trace_back(last, counts));
    }

    void extend(int first, int device, int count, int next) {
        const double sum = row(count, device)[first];
        for (int mesh = 0; mesh < num_meshes_; ++mesh) {
            if (!is_allowed(device, mesh))
                continue;
            double* target = row(next, device + table_.mesh_devices[mesh]);
            const double* costs = &costs_[is_outside(device)][cell(mesh, first)];
            for (int end = first + 1; end < width_; ++end) {
                const double all = sum + costs[end];
                target[end] = all < target[end] ? all : target[end];
            }
        }
    }

    Pipeline trace_back(int level, bool counts) {
        Pipeline found;
        int end = table_.num_layers, device = table_.num_devices;
        found.sum_ticks = row(level, device)[end];
        while (end > 0) {
            const int before = counts ? level - 1 : 0;
            const auto [stage, ticks] = last_stage(level, before, device, end);
            found.slowest_ticks = std::max(found.slowest_ticks, ticks);
            const int32_t kind = table_.classes[cell(stage.mesh, stage.first) + end];
            const int at = fastest(kind, bytes_);
            found.bytes = std::max(found.bytes, table_.bytes[at]);
            found.stages.push_back({stage.first, end, stage.mesh, at - table_.offsets[kind]});
            end = stage.first;
            device -= table_.mesh_devices[stage.mesh];
            level = before;
        }
        std::reverse(found.stages.begin(), found.stages.end());
        return found;
    }

    // A stage that the best sum can end with: of several, the shortest one.
    std::pair<PipelineStage, double> last_stage(int level, int before, int device, int end) {
        const double sum = row(level, device)[end];
        PipelineStage stage{-1, end, -1, -1};
        double least = kNever;
        for (int mesh = 0; mesh < num_meshes_; ++mesh) {
            const int start = device - table_.mesh_devices[mesh];
            if (start < 0 || !is_allowed(start, mesh))
                continue;
            for (int first = 0; first < end; ++first) {
                const double ticks = costs_[is_outside(start)][cell(mesh, first) + end];
                if (ticks < least && row(before, start)[first] + ticks == sum) {
                    stage.first = first;
                    stage.mesh = mesh;
                    least = ticks;
                }
            }
        }
        return {stage, least};
    }

    int64_t bytes_ = 0;
};

bool fits(const Pipeline& answer, const Bounds& bounds) {
    return answer.slowest_ticks < bounds.ticks && answer.bytes < bounds.bytes;
}

// A narrower question; its answer is that of the wider one, if that fits.
Question narrowed(const Question& wider, const Bounds& bounds, Slicer& slicer) {
    if (fits(*wider.answer, bounds))
        return {bounds, wider.answer};
    return {bounds, slicer.solve(bounds)};
}

// Replace the questions whose answer could be `found` by those that exclude it. Questions are a
// staircase: by ascending ticks and descending bytes.
void exclude(std::vector<Question>& questions, const Pipeline& found, double tolerance,
             Slicer& slicer) {
    const auto holds = [&](const Question& one) { return fits(found, one.bounds); };
    const auto begin = std::find_if(questions.begin(), questions.end(), holds);
    const auto end = std::find_if_not(begin, questions.end(), holds);
    const Bounds faster{found.slowest_ticks * (1.0 - tolerance), begin->bounds.bytes};
    const Bounds smaller{(end - 1)->bounds.ticks,
                         static_cast<int64_t>(static_cast<double>(found.bytes) *
                                              (1.0 - tolerance))};
    // A question within a wider one asks nothing new.
    const bool has_faster = begin != questions.begin() && (begin - 1)->bounds.ticks >= faster.ticks;
    const bool has_smaller = end != questions.end() && end->bounds.bytes >= smaller.bytes;
    std::vector<Question> replaced;
    if (!has_faster)
        replaced.push_back(narrowed(*begin, faster, slicer));
    if (!has_smaller)
        replaced.push_back(narrowed(*(end - 1), smaller, slicer));
    replaced.erase(std::remove_if(replaced.begin(), replaced.end(),
                                  [](const Question& one) { return !one.answer; }),
                   replaced.end());
    const auto at = questions.erase(begin, end);
    questions.insert(at, replaced.begin(), replaced.end());
}

bool beats(const Pipeline& one, const Pipeline& other) {
    return one.sum_ticks <= other.sum_ticks && one.slowest_ticks <= other.slowest_ticks &&
           one.bytes <= other.bytes;
}

} // namespace

std::vector<Pipeline> pareto_pipelines(const StageTable& table, int64_t max_bytes,
                                       double tolerance) {
    Slicer slicer(table);
    std::vector<Question> questions;
    const Bounds none{kNever, max_bytes < INT64_MAX ? max_bytes + 1 : max_bytes};
    if (auto answer = slicer.solve(none))
        questions.push_back({none, std::move(answer)});
    std::vector<Pipeline> front;
    while (!questions.empty()) {
        const auto least = std::min_element(
            questions.begin(), questions.end(), [](const Question& a, const Question& b) {
                return a.answer->sum_ticks < b.answer->sum_ticks;
            });
        const Pipeline found = *least->answer;
        exclude(questions, found, tolerance, slicer);
        // Of equal sums, a later one may be better in the rest.
        front.erase(std::remove_if(front.begin(), front.end(),
                                   [&](const Pipeline& one) { return beats(found, one); }),
                    front.end());
        front.push_back(found);
    }
    return front;
}

} // namespace planner
