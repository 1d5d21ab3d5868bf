/* A linear layer over few rows: y = x W^T + b in bfloat16 or float32, summed in float32. Attention, what lies between
 * products, and random bits follow below.
 *
 * Processors with AVX-512 but without matrix units multiply float32 twice as fast as they take dot products of bfloat16,
 * so weights of that are widened in registers, which is a shift or a mask, and multiplied as float32. Each weight is read
 * from memory once for all rows, and the next ones are on their way meanwhile.
 *
 * A packed weight lies in blocks of 16 outputs, in each of them the inputs by pairs. A pair in bfloat16 is [16][2], so that a
 * load of 64 bytes holds two inputs of 16 outputs; in float32 it is [2][16]. Sums run over the inputs in order, whatever the
 * number of rows, in float32 by parts: a row's result does not depend on others.
 */
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#if !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "this processor has no AVX-512"
#endif

typedef uint16_t bf16;

enum { LANES = 16, LINE = 64, AT_ONCE = 96 * LINE, MOST_ROWS = 64, GROUP = 12, MOST_SUMS = 24 };
/* AT_ONCE bytes of each block are worked on by all groups of rows, at most GROUP rows each, with MOST_SUMS registers. */

static inline __m512 widen(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

/* To the nearest, ties to even. */
static inline __m256i narrow(__m512 numbers) {
    const __m512i bits = _mm512_castps_si512(numbers);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}

/* Of `count` numbers from c on, those that are there. */
static inline __mmask16 there(long count, long c) {
    return count - c >= LANES ? 0xffff : (__mmask16)((1u << (count - c)) - 1);
}

/* Sixteen numbers of one of the two kinds, as float32 and back; and a number as it is once it was kept. */
static inline __m512 load(const void *from, long at, __mmask16 mask, int is_float) {
    return is_float ? _mm512_maskz_loadu_ps(mask, (const float *)from + at)
                    : widen(_mm256_maskz_loadu_epi16(mask, (const bf16 *)from + at));
}
static inline void keep(void *to, long at, __mmask16 mask, int is_float, __m512 numbers) {
    if (is_float)
        _mm512_mask_storeu_ps((float *)to + at, mask, numbers);
    else
        _mm256_mask_storeu_epi16((bf16 *)to + at, mask, narrow(numbers));
}
static inline __m512 rounded(__m512 numbers, int is_float) { return is_float ? numbers : widen(narrow(numbers)); }

/* weight [n][k] of numbers of `size` bytes: 2, or 4 for float32. */
void slipstream_pack(const void *weight, void *packed, long n, long k, long size, int threads) {
    const long pairs = (k + 1) / 2, blocks = (n + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads)
    for (long block = 0; block < blocks; block++)
        for (long pair = 0; pair < pairs; pair++)
            for (long lane = 0; lane < LANES; lane++)
                for (long half = 0; half < 2; half++) {
                    const long row = block * LANES + lane, column = 2 * pair + half, first = (block * pairs + pair) * 2 * LANES;
                    const int is_there = row < n && column < k;
                    if (size == 2)
                        ((bf16 *)packed)[first + lane * 2 + half] = is_there ? ((const bf16 *)weight)[row * k + column] : 0;
                    else
                        ((float *)packed)[first + half * LANES + lane] =
                            is_there ? ((const float *)weight)[row * k + column] : 0;
                }
}

/* A pair of inputs of 16 outputs. */
static inline void load_2(const char *at, __m512 *even, __m512 *odd) {
    const __m512i both = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}
static inline void load_4(const char *at, __m512 *even, __m512 *odd) {
    *even = _mm512_loadu_ps(at);
    *odd = _mm512_loadu_ps(at + LINE);
}

/* Adds the products of some pairs of inputs to the sums of R rows and V blocks, [R][V][16]. x: rows that lie `width`
 * apart. block: bytes from one block of weights to the next. ahead: weights that come next, of which the lines of a pair are
 * fetched at every `each`-th pair. Numbers have S bytes, so a pair has S / 2 lines. In float32 what is added up here begins at
 * 0: sums of sums are closer than one long sum. */
typedef void (*Tile)(const float *x, long width, const char *w, long block, long pairs, float *sums, int is_first,
                     const char *ahead, long each);

#define TILE(R, V, S)                                                                                                  \
    static void tile_##R##_##V##_##S(const float *x, long width, const char *w, long block, long pairs, float *sums,   \
                                     int is_first, const char *ahead, long each) {                                     \
        __m512 sum[R][V], even[V], odd[V];                                                                             \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < V; v++)                                                                                \
                sum[r][v] = is_first || S == 4 ? _mm512_setzero_ps() : _mm512_load_ps(sums + (r * V + v) * LANES);     \
        for (long p = 0; p < pairs; p++) {                                                                             \
            for (int v = 0; v < V; v++)                                                                                \
                load_##S(w + v * block + p * (S / 2 * LINE), even + v, odd + v);                                       \
            if (each == 1 || p % each == 0)                                                                            \
                for (int v = 0; v < V; v++)                                                                            \
                    for (int line = 0; line < S / 2; line++)                                                           \
                        _mm_prefetch(ahead + v * block + (p / each * (S / 2) + line) * LINE, _MM_HINT_T1);             \
            for (int r = 0; r < R; r++) {                                                                              \
                const __m512 input = _mm512_set1_ps(x[r * width + 2 * p]);                                             \
                for (int v = 0; v < V; v++)                                                                            \
                    sum[r][v] = _mm512_fmadd_ps(even[v], input, sum[r][v]);                                            \
            }                                                                                                          \
            for (int r = 0; r < R; r++) {                                                                              \
                const __m512 input = _mm512_set1_ps(x[r * width + 2 * p + 1]);                                         \
                for (int v = 0; v < V; v++)                                                                            \
                    sum[r][v] = _mm512_fmadd_ps(odd[v], input, sum[r][v]);                                             \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < V; v++) {                                                                              \
                float *to = sums + (r * V + v) * LANES;                                                                \
                _mm512_store_ps(to, S == 4 && !is_first ? _mm512_add_ps(_mm512_load_ps(to), sum[r][v]) : sum[r][v]);   \
            }                                                                                                          \
    }

#define WIDE(F, S)                                                                                                     \
    F(1, 8, S) F(2, 8, S) F(3, 6, S) F(4, 4, S) F(5, 4, S) F(6, 4, S) F(7, 3, S) F(8, 3, S) F(9, 2, S) F(10, 2, S)     \
    F(11, 2, S) F(12, 2, S)
#define SINGLE(F, S)                                                                                                   \
    F(1, 1, S) F(2, 1, S) F(3, 1, S) F(4, 1, S) F(5, 1, S) F(6, 1, S) F(7, 1, S) F(8, 1, S) F(9, 1, S) F(10, 1, S)     \
    F(11, 1, S) F(12, 1, S)
#define NAME(R, V, S) tile_##R##_##V##_##S,
#define WIDTH(R, V, S) V,

WIDE(TILE, 2)
SINGLE(TILE, 2)
WIDE(TILE, 4)
SINGLE(TILE, 4)
static const Tile wide[2][GROUP] = {{WIDE(NAME, 2)}, {WIDE(NAME, 4)}}; /* by rows - 1 */
static const Tile single[2][GROUP] = {{SINGLE(NAME, 2)}, {SINGLE(NAME, 4)}};
static const int widths[] = {WIDE(WIDTH, 2)};

typedef struct {
    const char *weight;
    const void *bias;
    void *out;
    const float *x;
    int is_float;
    long n, pairs, width, groups, begin[MOST_ROWS / GROUP + 3];
} Layer;

/* out[column ...] = sum + bias of one block. */
static void store(const Layer *layer, long row, long column, __m512 sum) {
    const __mmask16 mask = there(layer->n, column);
    if (layer->bias)
        sum = _mm512_add_ps(sum, load(layer->bias, column, mask, layer->is_float));
    keep(layer->out, row * layer->n + column, mask, layer->is_float, sum);
}

/* The outputs of `count` blocks from `first` on, for all rows. */
static void run_blocks(const Layer *layer, long first, int count) {
    float sums[MOST_ROWS / GROUP + 2][MOST_SUMS * LANES] __attribute__((aligned(64)));
    const long size = layer->is_float ? 2 * LINE : LINE; /* of a pair */
    const long block = layer->pairs * size, groups = layer->groups;
    const char *w = layer->weight + first * block;
    const Tile *together = wide[layer->is_float], *alone = single[layer->is_float];
    const long step = AT_ONCE / size;
    for (long pair = 0; pair < layer->pairs; pair += step) {
        const long rest = layer->pairs - pair, pairs = rest < step ? rest : step;
        /* The lines of what is next, after this part or these blocks, are fetched meanwhile, by all groups together. */
        const char *ahead = rest > step ? w + (pair + step) * size : w + count * block;
        for (long g = 0; g < groups; g++) {
            const long rows = layer->begin[g + 1] - layer->begin[g];
            const float *x = layer->x + layer->begin[g] * layer->width + 2 * pair;
            const char *mine = ahead + g * ((pairs + groups - 1) / groups) * size;
            if (count > 1 && count == widths[rows - 1])
                together[rows - 1](x, layer->width, w + pair * size, block, pairs, sums[g], pair == 0, mine, groups);
            else
                for (int v = 0; v < count; v++)
                    alone[rows - 1](x, layer->width, w + v * block + pair * size, block, pairs,
                                    sums[g] + v * rows * LANES, pair == 0, mine + v * block, groups);
        }
    }
    for (long g = 0; g < groups; g++) {
        const long rows = layer->begin[g + 1] - layer->begin[g];
        const int is_wide = count > 1 && count == widths[rows - 1];
        for (int v = 0; v < count; v++)
            for (long r = 0; r < rows; r++)
                store(layer, layer->begin[g] + r, (first + v) * LANES,
                      _mm512_load_ps(sums[g] + (is_wide ? r * count + v : v * rows + r) * LANES));
    }
}

/* x [rows][k], a packed weight, bias [n] or NULL, out [rows][n], all of numbers of `size` bytes. Returns 0, or 1 where there
 * is no memory. */
int slipstream_linear(const void *x, const void *weight, const void *bias, void *out, long rows, long n, long k, long size,
                      int threads) {
    static _Thread_local float *scratch;
    static _Thread_local long room;
    Layer layer = {weight, bias, out, x, size == 4, n, (k + 1) / 2, 2 * ((k + 1) / 2), (rows + GROUP - 1) / GROUP, {0}};
    if (room < rows * layer.width) {
        free(scratch);
        room = rows * layer.width;
        scratch = aligned_alloc(64, ((size_t)room * sizeof(float) + 63) / 64 * 64);
        if (!scratch) {
            room = 0;
            return 1;
        }
    }
    if (size == 2 || k < layer.width) {
        layer.x = scratch;
        for (long r = 0; r < rows; r++)
            for (long c = 0; c < layer.width; c += LANES)
                keep(scratch, r * layer.width + c, there(layer.width, c), 1,
                     load(x, r * k + c, k > c ? there(k, c) : 0, layer.is_float));
    }
    for (long g = 0; g < layer.groups; g++)
        layer.begin[g + 1] = rows * (g + 1) / layer.groups;
    long largest = 1;
    for (long g = 0; g < layer.groups; g++)
        if (layer.begin[g + 1] - layer.begin[g] > largest)
            largest = layer.begin[g + 1] - layer.begin[g];
    const int count = widths[largest - 1];
    const long blocks = (n + LANES - 1) / LANES, tiles = (blocks + count - 1) / count;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long tile = 0; tile < tiles; tile++) {
        const long first = tile * count;
        if (first + count <= blocks)
            run_blocks(&layer, first, count);
        else
            for (long block = first; block < blocks; block++)
                run_blocks(&layer, block, 1);
    }
    return 0;
}

/* Attention of few rows over a cache: softmax(scale q k^T + mask) v, in float32 throughout.
 *
 * The queries that share a key head are rows like any others. Keys come in blocks of KEYS; a block that the mask hides
 * from all rows at hand is left out. All scores of a row are there before the first is weighed, so their highest is known,
 * weights are added up as whole numbers, and values one after the other. So what is hidden changes nothing, wherever it
 * stands between what is seen: a row's result hangs on the keys that it sees and their order alone, not on other rows, nor
 * on where the nodes of a tree lie.
 */
enum { KEYS = 64, MOST_WIDTH = 256, TOGETHER = 6, CHUNK = 24 };
static const double UNIT = 70368744177664.0; /* 2^46: weights are at most 1, and there are fewer than 2^17 */

typedef struct {
    const void *q, *k, *v, *mask;
    void *out;
    long heads, key_heads, rows, keys, d, dv;              /* d, dv: multiples of 16, at most MOST_WIDTH */
    long q_head, q_row, k_head, k_row, v_head, v_row, mask_row; /* numbers from one to the next */
    float scale;
} Attention;

/* e to the power of numbers of at most 0; below -87 it is 0. Cephes' polynomial, 2 units in the last place. */
static inline __m512 exponential(__m512 x) {
    const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), tiny, _mm512_setzero_ps());
}

/* Rows and columns of 16 x 16 numbers change places. */
static inline void exchange(__m512 *rows) {
    __m512 a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d upper = _mm512_castps_pd(a[i + j]), lower = _mm512_castps_pd(a[i + j + 2]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    /* b[i + j] now holds, of rows i to i + 3, columns j, 4 + j, 8 + j and 12 + j. */
    for (int j = 0; j < 4; j++) {
        const __m512 first = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), second = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
        const __m512 third = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
        const __m512 fourth = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_f32x4(first, third, 0x88);
        rows[8 + j] = _mm512_shuffle_f32x4(first, third, 0xdd);
        rows[4 + j] = _mm512_shuffle_f32x4(second, fourth, 0x88);
        rows[12 + j] = _mm512_shuffle_f32x4(second, fourth, 0xdd);
    }
}

/* to[d][KEYS] of `count` keys [count][d], from number `first` on; those that are missing are zeros. */
static inline void transpose(const void *from, long first, long row, long count, long d, float *to, int is_float) {
    for (long key = 0; key < KEYS; key += LANES)
        for (long c = 0; c < d; c += LANES) {
            __m512 square[LANES];
            for (int i = 0; i < LANES; i++)
                square[i] = key + i < count ? load(from, first + (key + i) * row + c, 0xffff, is_float) : _mm512_setzero_ps();
            exchange(square);
            for (int i = 0; i < LANES; i++)
                _mm512_store_ps(to + (c + i) * KEYS + key, square[i]);
        }
}

/* sum[R][4 vectors] += a[R][inner] b[inner][16 * V of `width`] */
#define PRODUCT(R, V)                                                                                                  \
    static void product_##R##_##V(const float *a, long a_row, const float *b, long width, long inner, float *sum,      \
                                  long sum_row) {                                                                      \
        __m512 s[R][V];                                                                                                \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < V; v++)                                                                                \
                s[r][v] = _mm512_loadu_ps(sum + r * sum_row + v * LANES);                                              \
        for (long i = 0; i < inner; i++) {                                                                             \
            __m512 x[V];                                                                                               \
            for (int v = 0; v < V; v++)                                                                                \
                x[v] = _mm512_loadu_ps(b + i * width + v * LANES);                                                     \
            for (int r = 0; r < R; r++) {                                                                              \
                const __m512 y = _mm512_set1_ps(a[r * a_row + i]);                                                     \
                for (int v = 0; v < V; v++)                                                                            \
                    s[r][v] = _mm512_fmadd_ps(x[v], y, s[r][v]);                                                       \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < V; v++)                                                                                \
                _mm512_storeu_ps(sum + r * sum_row + v * LANES, s[r][v]);                                              \
    }
typedef void (*Product)(const float *a, long a_row, const float *b, long width, long inner, float *sum, long sum_row);
#define BY_WIDTH(F, R) F(R, 1) F(R, 2) F(R, 3) F(R, 4)
#define PRODUCTS(F) BY_WIDTH(F, 1) BY_WIDTH(F, 2) BY_WIDTH(F, 3) BY_WIDTH(F, 4) BY_WIDTH(F, 5) BY_WIDTH(F, 6)
#define PRODUCT_NAME(R, V) product_##R##_##V,
PRODUCTS(PRODUCT)
static const Product products[] = {PRODUCTS(PRODUCT_NAME)};

static void multiply(const float *a, long a_row, long rows, const float *b, long width, long inner, float *sum,
                     long sum_row) {
    for (long r = 0; r < rows; r += TOGETHER) {
        const long some = rows - r < TOGETHER ? rows - r : TOGETHER;
        for (long c = 0; c < width; c += 4 * LANES) {
            const long vectors = width - c < 4 * LANES ? (width - c) / LANES : 4;
            products[(some - 1) * 4 + vectors - 1](a + r * a_row, a_row, b + c, width, inner, sum + r * sum_row + c,
                                                   sum_row);
        }
    }
}

/* Rows first .. first + count - 1 of those of one key head: row i is row i % rows of its (i / rows)-th query head. */
static inline int attend(const Attention *it, long head, long first, long count, int is_float) {
    static _Thread_local float *scratch;
    static _Thread_local long room;
    float q[CHUNK * MOST_WIDTH] __attribute__((aligned(64))), sum[CHUNK * MOST_WIDTH] __attribute__((aligned(64)));
    float block[KEYS * MOST_WIDTH] __attribute__((aligned(64))), highest[CHUNK];
    int64_t total[CHUNK];
    const long blocks = (it->keys + KEYS - 1) / KEYS, width = blocks * KEYS;
    if (room < (CHUNK + 1) * width) {
        free(scratch);
        room = (CHUNK + 1) * width;
        scratch = aligned_alloc(64, (size_t)room * sizeof(float));
        if (!scratch) {
            room = 0;
            return 1;
        }
    }
    float *scores = scratch;                             /* [count][width] */
    unsigned char *seen = (unsigned char *)(scratch + CHUNK * width); /* by blocks */
    const long group = it->heads / it->key_heads;
    long masks[CHUNK];
    for (long r = 0; r < count; r++) {
        const long row = (first + r) % it->rows, query = head * group + (first + r) / it->rows;
        const long from = query * it->q_head + row * it->q_row;
        for (long c = 0; c < it->d; c += LANES)
            _mm512_store_ps(q + r * it->d + c,
                            _mm512_mul_ps(load(it->q, from + c, 0xffff, is_float), _mm512_set1_ps(it->scale)));
        for (long c = 0; c < it->dv; c += LANES)
            _mm512_store_ps(sum + r * it->dv + c, _mm512_setzero_ps());
        masks[r] = row * it->mask_row;
        highest[r] = -FLT_MAX;
        total[r] = 0;
    }
    for (long number = 0; number < blocks; number++) {
        const long key = number * KEYS, some = it->keys - key < KEYS ? it->keys - key : KEYS;
        seen[number] = 0;
        for (long r = 0; r < count && !seen[number]; r++)
            for (long c = 0; c < some; c += LANES) {
                const __mmask16 kept = there(some, c);
                const __m512 hidden = load(it->mask, masks[r] + key + c, kept, is_float);
                seen[number] |= 0 != _mm512_mask_cmp_ps_mask(kept, hidden, _mm512_set1_ps(-1e38f), _CMP_GT_OQ);
            }
        if (!seen[number])
            continue;
        transpose(it->k, head * it->k_head + key * it->k_row, it->k_row, some, it->d, block, is_float);
        for (long r = 0; r < count; r++)
            for (long c = 0; c < KEYS; c += LANES)
                _mm512_store_ps(scores + r * width + key + c, _mm512_setzero_ps());
        multiply(q, it->d, count, block, KEYS, it->d, scores + key, width);
        for (long r = 0; r < count; r++) {
            __m512 most = _mm512_set1_ps(highest[r]);
            for (long c = 0; c < KEYS; c += LANES) {
                const __mmask16 kept = some > c ? there(some, c) : 0;
                const __m512 hidden = load(it->mask, masks[r] + key + c, kept, is_float);
                const __m512 sum = _mm512_add_ps(_mm512_load_ps(scores + r * width + key + c), hidden);
                const __m512 score = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), kept, sum);
                _mm512_store_ps(scores + r * width + key + c, score);
                most = _mm512_max_ps(most, score);
            }
            highest[r] = _mm512_reduce_max_ps(most);
        }
    }
    for (long number = 0; number < blocks; number++) {
        const long key = number * KEYS, some = it->keys - key < KEYS ? it->keys - key : KEYS;
        if (!seen[number])
            continue;
        for (long r = 0; r < count; r++) {
            __m512i whole = _mm512_setzero_si512();
            for (long c = 0; c < KEYS; c += LANES) {
                float *place = scores + r * width + key + c;
                const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(place), _mm512_set1_ps(highest[r])));
                _mm512_store_ps(place, weight);
                const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(weight));
                const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(weight, 1));
                whole = _mm512_add_epi64(whole, _mm512_cvtpd_epi64(_mm512_mul_pd(low, _mm512_set1_pd(UNIT))));
                whole = _mm512_add_epi64(whole, _mm512_cvtpd_epi64(_mm512_mul_pd(high, _mm512_set1_pd(UNIT))));
            }
            total[r] += _mm512_reduce_add_epi64(whole);
        }
        const long values = head * it->v_head + key * it->v_row;
        for (long i = 0; i < some; i++)
            for (long c = 0; c < it->dv; c += LANES)
                _mm512_store_ps(block + i * it->dv + c, load(it->v, values + i * it->v_row + c, 0xffff, is_float));
        multiply(scores + key, width, count, block, it->dv, some, sum, it->dv);
    }
    for (long r = 0; r < count; r++) {
        const long row = (first + r) % it->rows, query = head * group + (first + r) / it->rows;
        const __m512 share = _mm512_set1_ps((float)(UNIT / (double)total[r]));
        for (long c = 0; c < it->dv; c += LANES)
            keep(it->out, (row * it->heads + query) * it->dv + c, 0xffff, is_float,
                 _mm512_mul_ps(share, _mm512_load_ps(sum + r * it->dv + c)));
    }
    return 0;
}

/* q [heads][rows][d], k [key heads][keys][d], v [key heads][keys][dv], mask [rows][keys], out [rows][heads][dv], all of numbers
 * of `size` bytes. Returns 0, or 1 where there is no memory. */
int slipstream_attention(const void *q, const void *k, const void *v, const void *mask, void *out, const long *sizes,
                         float scale, long size, int threads) {
    Attention it = {q,        k,        v,        mask,     out,      sizes[0], sizes[1], sizes[2],  sizes[3], sizes[4],
                    sizes[5], sizes[6], sizes[7], sizes[8], sizes[9], sizes[10], sizes[11], sizes[12], scale};
    const long rows = it.rows * (it.heads / it.key_heads);
    const long fit = (rows + CHUNK - 1) / CHUNK, spread = (2 * threads + it.key_heads - 1) / it.key_heads;
    const long most = (rows + TOGETHER - 1) / TOGETHER;
    const long parts = fit > spread || fit > most ? fit : spread < most ? spread : most;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
    for (long task = 0; task < it.key_heads * parts; task++) {
        const long part = task % parts, first = rows * part / parts, end = rows * (part + 1) / parts;
        if (end > first)
            failed |= size == 4 ? attend(&it, task / parts, first, end - first, 1)
                                : attend(&it, task / parts, first, end - first, 0);
    }
    return failed;
}

static inline void norm_row(const void *x, const void *weight, void *out, long first, long n, float eps, int is_float) {
    __m512 squares = _mm512_setzero_ps();
    for (long c = 0; c < n; c += LANES) {
        const __m512 part = load(x, first + c, there(n, c), is_float);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / (float)n + eps;
    const __m512 factor = _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))));
    for (long c = 0; c < n; c += LANES) {
        const __mmask16 mask = there(n, c);
        const __m512 even = rounded(_mm512_mul_ps(load(x, first + c, mask, is_float), factor), is_float);
        keep(out, first + c, mask, is_float, _mm512_mul_ps(even, load(weight, c, mask, is_float)));
    }
}

/* out = weight * x / sqrt(mean(x^2) + eps) of rows [rows][n] of numbers of `size` bytes, summed in float32; rounded before the
 * weight is multiplied, and after. */
void slipstream_rms_norm(const void *x, const void *weight, void *out, long rows, long n, float eps, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * n > 65536)
    for (long row = 0; row < rows; row++)
        if (size == 4)
            norm_row(x, weight, out, row * n, n, eps, 1);
        else
            norm_row(x, weight, out, row * n, n, eps, 0);
}

/* Turns the rows of some heads: out = x cos + turned(x) sin, where turned exchanges the halves of the d numbers and takes the
 * second one's opposite. x [heads][rows][d] by its steps; cos, sin [rows][d]; out [rows][heads][d]. Each product and the sum
 * are rounded. d: a multiple of 32. */
static inline void turn(const void *x, const void *cos, const void *sin, void *out, long heads, long rows, long d,
                        long head_step, long row_step, int is_float) {
    const __m512 minus = _mm512_set1_ps(-0.0f);
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++)
            for (long c = 0; c < d; c += LANES) {
                const long from = head * head_step + row * row_step;
                __m512 turned = load(x, from + (c < d / 2 ? c + d / 2 : c - d / 2), 0xffff, is_float);
                if (c < d / 2)
                    turned = _mm512_xor_ps(turned, minus);
                const __m512 here = load(x, from + c, 0xffff, is_float);
                const __m512 a = rounded(_mm512_mul_ps(here, load(cos, row * d + c, 0xffff, is_float)), is_float);
                const __m512 b = rounded(_mm512_mul_ps(turned, load(sin, row * d + c, 0xffff, is_float)), is_float);
                keep(out, (row * heads + head) * d + c, 0xffff, is_float, _mm512_add_ps(a, b));
            }
}

/* Rotary position embedding of queries and keys, numbers of `size` bytes. sizes: heads, key heads, rows, d, and steps from head
 * to head and from row to row of q and of k. */
void slipstream_rotary(const void *q, const void *k, const void *cos, const void *sin, void *q_out, void *k_out,
                       const long *sizes, long size) {
    if (size == 4) {
        turn(q, cos, sin, q_out, sizes[0], sizes[2], sizes[3], sizes[4], sizes[5], 1);
        turn(k, cos, sin, k_out, sizes[1], sizes[2], sizes[3], sizes[6], sizes[7], 1);
    } else {
        turn(q, cos, sin, q_out, sizes[0], sizes[2], sizes[3], sizes[4], sizes[5], 0);
        turn(k, cos, sin, k_out, sizes[1], sizes[2], sizes[3], sizes[6], sizes[7], 0);
    }
}

/* Random bits by Philox4x32-10 (Salmon et al. 2011), as core/sampling.py defines them: of `pairs` neighbouring tokens from 0
 * on, a whole number of 53 bits for each token, out [count][size] for text positions [count]; size: a multiple of 16, at least
 * 2 pairs. Words stand in lanes of 64 bits, of which a product reads the lower 32. */
static void philox(int64_t *out, long pairs, const uint32_t *counter, const uint32_t *key) {
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), second = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    const __m512i word = _mm512_set1_epi64(0xffffffff);
    for (long pair = 0; pair < pairs; pair += 8) {
        __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64(pair), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
        __m512i c1 = _mm512_set1_epi64(counter[0]), c2 = _mm512_set1_epi64(counter[1]), c3 = _mm512_set1_epi64(counter[2]);
        uint32_t k0 = key[0], k1 = key[1];
        for (int round = 0; round < 10; round++) {
            const __m512i p0 = _mm512_mul_epu32(c0, m0), p1 = _mm512_mul_epu32(c2, m1);
            c0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), c1), _mm512_set1_epi64(k0));
            c2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), c3), _mm512_set1_epi64(k1));
            c1 = p1;
            c3 = p0;
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        c0 = _mm512_slli_epi64(_mm512_and_si512(c0, word), 21);
        c2 = _mm512_slli_epi64(_mm512_and_si512(c2, word), 21);
        const __m512i even = _mm512_or_si512(c0, _mm512_srli_epi64(_mm512_and_si512(c1, word), 11));
        const __m512i odd = _mm512_or_si512(c2, _mm512_srli_epi64(_mm512_and_si512(c3, word), 11));
        _mm512_storeu_si512(out + 2 * pair, _mm512_permutex2var_epi64(even, first, odd));
        _mm512_storeu_si512(out + 2 * pair + 8, _mm512_permutex2var_epi64(even, second, odd));
    }
}

void slipstream_philox(int64_t *out, long size, long pairs, const int64_t *positions, long count, uint32_t stream,
                       uint64_t seed) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (long row = 0; row < count; row++) {
        const uint64_t position = (uint64_t)positions[row];
        const uint32_t counter[3] = {(uint32_t)position, (uint32_t)(position >> 32), stream};
        philox(out + row * size, pairs, counter, key);
    }
}
