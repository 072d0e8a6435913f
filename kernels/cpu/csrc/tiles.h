// The tile registers of AMX: eight of up to 16 rows of 64 bytes, and products of them.
//
// With EMULATED_TILES the same is done by plain code, so that what is built on it can be tested on
// any processor. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
// LDTILECFG, TILELOADD, TILESTORED and TDPBF16PS.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <immintrin.h>
#define HAS_TILES 1
#elif defined(EMULATED_TILES)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#if HAS_TILES

namespace KERNEL_ISA {

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(EMULATED_TILES)

struct EmulatedTiles {
  TileConfig config;
  uint8_t data[8][16][64];
};

inline EmulatedTiles& emulated() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}

inline void configure_tiles(const TileConfig& config) {
  emulated().config = config;
  std::memset(emulated().data, 0, sizeof emulated().data);
}

inline void release_tiles() {}

template <int kTile>
void zero_tile() {
  std::memset(emulated().data[kTile], 0, sizeof emulated().data[kTile]);
}

template <int kTile>
void load_tile(const void* from, int64_t stride) {
  EmulatedTiles& tiles = emulated();
  zero_tile<kTile>();
  for (int row = 0; row < tiles.config.rows[kTile]; ++row) {
    std::memcpy(tiles.data[kTile][row], static_cast<const char*>(from) + row * stride,
                tiles.config.row_bytes[kTile]);
  }
}

template <int kTile>
void store_tile(void* to, int64_t stride) {
  EmulatedTiles& tiles = emulated();
  for (int row = 0; row < tiles.config.rows[kTile]; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[kTile][row],
                tiles.config.row_bytes[kTile]);
  }
}

inline float emulated_bfloat16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Sums even and odd k apart, then both into the tile.
template <int kSum, int kA, int kB>
void multiply_tiles() {
  EmulatedTiles& tiles = emulated();
  const int num_pairs = tiles.config.row_bytes[kA] / 4;
  for (int row = 0; row < tiles.config.rows[kSum]; ++row) {
    for (int column = 0; column < tiles.config.row_bytes[kSum] / 4; ++column) {
      float even = 0.0f, odd = 0.0f;
      for (int pair = 0; pair < num_pairs; ++pair) {
        const uint8_t* a = tiles.data[kA][row] + 4 * pair;
        const uint8_t* b = tiles.data[kB][pair] + 4 * column;
        even = __builtin_fmaf(emulated_bfloat16(a), emulated_bfloat16(b), even);
        odd = __builtin_fmaf(emulated_bfloat16(a + 2), emulated_bfloat16(b + 2), odd);
      }
      float sum;
      std::memcpy(&sum, tiles.data[kSum][row] + 4 * column, 4);
      sum += even + odd;
      std::memcpy(tiles.data[kSum][row] + 4 * column, &sum, 4);
    }
  }
}

#else

// The operand is the whole configuration: the compiler's own intrinsic names its first 8 bytes only.
inline void configure_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

inline void release_tiles() { _tile_release(); }

template <int kTile>
void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}

template <int kTile>
void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}

template <int kSum, int kA, int kB>
void multiply_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

#endif

}  // namespace KERNEL_ISA

#endif
