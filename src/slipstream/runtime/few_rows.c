/* A linear layer over few rows: y = x W^T + b in bfloat16, summed in float32. Attention, what lies between products, and
 * random bits follow below.
 *
 * Processors with AVX-512 but without matrix units multiply float32 twice as fast as they take dot products of bfloat16,
 * so weights are widened in registers, which is a shift or a mask, and multiplied as float32. Each weight is read from
 * memory once for all rows, and the next ones are on their way meanwhile.
 *
 * A packed weight lies in blocks of 16 outputs: [n / 16][k / 2][16][2], so that a load of 64 bytes holds two inputs of 16
 * outputs. Sums run over the inputs in order, whatever the number of rows: a row's result does not depend on others.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

#if !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "this processor has no AVX-512"
#endif

typedef uint16_t bf16;

enum { LANES = 16, PAIRS = 96, MOST_ROWS = 64, GROUP = 12, MOST_SUMS = 24 };
/* PAIRS of inputs are worked on at a time by all groups of rows, at most GROUP rows each, with MOST_SUMS registers. */

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

void slipstream_pack(const bf16 *weight, bf16 *packed, long n, long k, int threads) {
    const long pairs = (k + 1) / 2, blocks = (n + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads)
    for (long block = 0; block < blocks; block++)
        for (long pair = 0; pair < pairs; pair++)
            for (long lane = 0; lane < LANES; lane++)
                for (long half = 0; half < 2; half++) {
                    const long row = block * LANES + lane, column = 2 * pair + half;
                    packed[((block * pairs + pair) * LANES + lane) * 2 + half] =
                        row < n && column < k ? weight[row * k + column] : 0;
                }
}

/* Adds the products of some pairs of inputs to the sums of R rows and V blocks, [R][V][16]. x: rows that lie `width`
 * apart. block: numbers from one block of weights to the next. ahead: of every `each`-th pair a line is fetched from
 * there, as far on as the pair is. */
typedef void (*Tile)(const float *x, long width, const bf16 *w, long block, long pairs, float *sums, int is_first,
                     const char *ahead, long each);

#define TILE(R, V)                                                                                                     \
    static void tile_##R##_##V(const float *x, long width, const bf16 *w, long block, long pairs, float *sums,         \
                               int is_first, const char *ahead, long each) {                                           \
        const __m512i high = _mm512_set1_epi32((int)0xffff0000);                                                       \
        __m512 sum[R][V], even[V], odd[V];                                                                             \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < V; v++)                                                                                \
                sum[r][v] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(sums + (r * V + v) * LANES);               \
        for (long p = 0; p < pairs; p++) {                                                                             \
            for (int v = 0; v < V; v++) {                                                                              \
                const __m512i both = _mm512_loadu_si512(w + v * block + p * 2 * LANES);                                \
                even[v] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));                                            \
                odd[v] = _mm512_castsi512_ps(_mm512_and_si512(both, high));                                            \
            }                                                                                                          \
            if (each == 1 || p % each == 0)                                                                            \
                for (int v = 0; v < V; v++)                                                                            \
                    _mm_prefetch(ahead + v * block * 2 + p / each * 64, _MM_HINT_T1);                                  \
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
            for (int v = 0; v < V; v++)                                                                                \
                _mm512_store_ps(sums + (r * V + v) * LANES, sum[r][v]);                                                \
    }

#define WIDE(F) F(1, 8) F(2, 8) F(3, 6) F(4, 4) F(5, 4) F(6, 4) F(7, 3) F(8, 3) F(9, 2) F(10, 2) F(11, 2) F(12, 2)
#define SINGLE(F) F(1, 1) F(2, 1) F(3, 1) F(4, 1) F(5, 1) F(6, 1) F(7, 1) F(8, 1) F(9, 1) F(10, 1) F(11, 1) F(12, 1)
#define NAME(R, V) tile_##R##_##V,
#define WIDTH(R, V) V,

WIDE(TILE)
SINGLE(TILE)
static const Tile wide[] = {WIDE(NAME)}, single[] = {SINGLE(NAME)}; /* by rows - 1 */
static const int widths[] = {WIDE(WIDTH)};

typedef struct {
    const bf16 *weight, *bias;
    bf16 *out;
    const float *x;
    long n, pairs, width, groups, begin[MOST_ROWS / GROUP + 3];
} Layer;

/* The outputs of `count` blocks from `first` on, for all rows. */
static void run_blocks(const Layer *layer, long first, int count) {
    float sums[MOST_ROWS / GROUP + 2][MOST_SUMS * LANES] __attribute__((aligned(64)));
    const long block = layer->pairs * 2 * LANES, groups = layer->groups;
    const bf16 *w = layer->weight + first * block;
    const long step = groups == 1 ? layer->pairs : PAIRS;
    for (long pair = 0; pair < layer->pairs; pair += step) {
        const long rest = layer->pairs - pair, pairs = rest < step ? rest : step;
        /* One group reads on where it is; several share the lines that come next. */
        const char *ahead = (const char *)(rest > step ? w + (pair + step) * 2 * LANES : w + count * block);
        if (groups == 1)
            ahead = (const char *)w + 2048;
        for (long g = 0; g < groups; g++) {
            const long rows = layer->begin[g + 1] - layer->begin[g];
            const float *x = layer->x + layer->begin[g] * layer->width + 2 * pair;
            const char *mine = ahead + g * ((pairs + groups - 1) / groups) * 64;
            if (count > 1 && count == widths[rows - 1])
                wide[rows - 1](x, layer->width, w + pair * 2 * LANES, block, pairs, sums[g], pair == 0, mine, groups);
            else
                for (int v = 0; v < count; v++)
                    single[rows - 1](x, layer->width, w + v * block + pair * 2 * LANES, block, pairs,
                                     sums[g] + v * rows * LANES, pair == 0, mine + v * block * 2, groups);
        }
    }
    for (long g = 0; g < groups; g++) {
        const long rows = layer->begin[g + 1] - layer->begin[g];
        const int together = count > 1 && count == widths[rows - 1];
        for (int v = 0; v < count; v++) {
            const long column = (first + v) * LANES, left = layer->n - column;
            const __mmask16 mask = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
            for (long r = 0; r < rows; r++) {
                __m512 sum = _mm512_load_ps(sums[g] + (together ? r * count + v : v * rows + r) * LANES);
                if (layer->bias)
                    sum = _mm512_add_ps(sum, widen(_mm256_maskz_loadu_epi16(mask, layer->bias + column)));
                bf16 *out = layer->out + (layer->begin[g] + r) * layer->n + column;
                _mm256_mask_storeu_epi16(out, mask, narrow(sum));
            }
        }
    }
}

/* x [rows][k], a packed weight, bias [n] or NULL, out [rows][n]. Returns 0, or 1 where there is no memory. */
int slipstream_linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long n, long k,
                      int threads) {
    static _Thread_local float *scratch;
    static _Thread_local long room;
    Layer layer = {weight, bias, out, 0, n, (k + 1) / 2, 2 * ((k + 1) / 2), (rows + GROUP - 1) / GROUP, {0}};
    if (room < rows * layer.width) {
        free(scratch);
        room = rows * layer.width;
        scratch = aligned_alloc(64, ((size_t)room * sizeof(float) + 63) / 64 * 64);
        if (!scratch) {
            room = 0;
            return 1;
        }
    }
    layer.x = scratch;
    for (long r = 0; r < rows; r++) {
        float *to = scratch + r * layer.width;
        for (long c = 0; c < layer.width; c += LANES) {
            const long left = k - c, space = layer.width - c;
            const __mmask16 mask = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
            const __mmask16 kept = space >= LANES ? 0xffff : (__mmask16)((1u << space) - 1);
            _mm512_mask_storeu_ps(to + c, kept, widen(_mm256_maskz_loadu_epi16(mask, x + r * k + c)));
        }
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
    const bf16 *q, *k, *v, *mask;
    bf16 *out;
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

/* to[d][KEYS] of `count` keys [count][d]; those that are missing are zeros. */
static void transpose(const bf16 *from, long row, long count, long d, float *to) {
    float line[LANES] __attribute__((aligned(64)));
    for (long key = 0; key < KEYS; key++)
        for (long c = 0; c < d; c += LANES) {
            const __m512 part = key < count ? widen(_mm256_loadu_si256((const void *)(from + key * row + c)))
                                            : _mm512_setzero_ps();
            _mm512_store_ps(line, part);
            for (int i = 0; i < LANES; i++)
                to[(c + i) * KEYS + key] = line[i];
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
static int attend(const Attention *it, long head, long first, long count) {
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
    const bf16 *masks[CHUNK];
    for (long r = 0; r < count; r++) {
        const long row = (first + r) % it->rows, query = head * group + (first + r) / it->rows;
        const bf16 *from = it->q + query * it->q_head + row * it->q_row;
        for (long c = 0; c < it->d; c += LANES)
            _mm512_store_ps(q + r * it->d + c, _mm512_mul_ps(widen(_mm256_loadu_si256((const void *)(from + c))),
                                                             _mm512_set1_ps(it->scale)));
        for (long c = 0; c < it->dv; c += LANES)
            _mm512_store_ps(sum + r * it->dv + c, _mm512_setzero_ps());
        masks[r] = it->mask + row * it->mask_row;
        highest[r] = -3.4e38f;
        total[r] = 0;
    }
    for (long number = 0; number < blocks; number++) {
        const long key = number * KEYS, some = it->keys - key < KEYS ? it->keys - key : KEYS;
        seen[number] = 0;
        for (long r = 0; r < count && !seen[number]; r++)
            for (long c = 0; c < some; c += LANES) {
                const __mmask16 there = some - c >= LANES ? 0xffff : (__mmask16)((1u << (some - c)) - 1);
                const __m512 hidden = widen(_mm256_maskz_loadu_epi16(there, masks[r] + key + c));
                seen[number] |= 0 != _mm512_mask_cmp_ps_mask(there, hidden, _mm512_set1_ps(-1e38f), _CMP_GT_OQ);
            }
        if (!seen[number])
            continue;
        transpose(it->k + head * it->k_head + key * it->k_row, it->k_row, some, it->d, block);
        for (long r = 0; r < count; r++)
            for (long c = 0; c < KEYS; c += LANES)
                _mm512_store_ps(scores + r * width + key + c, _mm512_setzero_ps());
        multiply(q, it->d, count, block, KEYS, it->d, scores + key, width);
        for (long r = 0; r < count; r++) {
            __m512 most = _mm512_set1_ps(highest[r]);
            for (long c = 0; c < KEYS; c += LANES) {
                const long left = some - c;
                const __mmask16 there = left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
                const __m512 hidden = widen(_mm256_maskz_loadu_epi16(there, masks[r] + key + c));
                const __m512 score = _mm512_add_ps(_mm512_load_ps(scores + r * width + key + c), hidden);
                const __m512 kept = _mm512_mask_mov_ps(_mm512_set1_ps(-3.4e38f), there, score);
                _mm512_store_ps(scores + r * width + key + c, kept);
                most = _mm512_max_ps(most, kept);
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
        const bf16 *values = it->v + head * it->v_head + key * it->v_row;
        for (long i = 0; i < some; i++)
            for (long c = 0; c < it->dv; c += LANES)
                _mm512_store_ps(block + i * it->dv + c,
                                widen(_mm256_loadu_si256((const void *)(values + i * it->v_row + c))));
        multiply(scores + key, width, count, block, it->dv, some, sum, it->dv);
    }
    for (long r = 0; r < count; r++) {
        const long row = (first + r) % it->rows, query = head * group + (first + r) / it->rows;
        const __m512 share = _mm512_set1_ps((float)(UNIT / (double)total[r]));
        for (long c = 0; c < it->dv; c += LANES)
            _mm256_storeu_si256((void *)(it->out + (row * it->heads + query) * it->dv + c),
                                narrow(_mm512_mul_ps(share, _mm512_load_ps(sum + r * it->dv + c))));
    }
    return 0;
}

/* q [heads][rows][d], k [key heads][keys][d], v [key heads][keys][dv], mask [rows][keys], out [rows][heads][dv]. Returns 0,
 * or 1 where there is no memory. */
int slipstream_attention(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *mask, bf16 *out, const long *sizes,
                         float scale, int threads) {
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
            failed |= attend(&it, task / parts, first, end - first);
    }
    return failed;
}

/* Of `count` numbers from c on, those that are there. */
static inline __mmask16 there(long count, long c) {
    return count - c >= LANES ? 0xffff : (__mmask16)((1u << (count - c)) - 1);
}

/* out = weight * x / sqrt(mean(x^2) + eps) of rows [rows][n], summed in float32; rounded before the weight is multiplied, and
 * after. */
void slipstream_rms_norm(const bf16 *x, const bf16 *weight, bf16 *out, long rows, long n, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * n > 65536)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * n;
        bf16 *to = out + row * n;
        __m512 squares = _mm512_setzero_ps();
        for (long c = 0; c < n; c += LANES) {
            const __m512 part = widen(_mm256_maskz_loadu_epi16(there(n, c), from + c));
            squares = _mm512_fmadd_ps(part, part, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / (float)n + eps;
        const __m512 factor = _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))));
        for (long c = 0; c < n; c += LANES) {
            const __mmask16 mask = there(n, c);
            const __m512 even = widen(narrow(_mm512_mul_ps(widen(_mm256_maskz_loadu_epi16(mask, from + c)), factor)));
            const __m512 scaled = _mm512_mul_ps(even, widen(_mm256_maskz_loadu_epi16(mask, weight + c)));
            _mm256_mask_storeu_epi16(to + c, mask, narrow(scaled));
        }
    }
}

/* Turns the rows of some heads: out = x cos + turned(x) sin, where turned exchanges the halves of the d numbers and takes the
 * second one's opposite. x [heads][rows][d] by its steps; cos, sin [rows][d]; out [rows][heads][d]. Each product and the sum
 * are rounded. d: a multiple of 32. */
static void turn(const bf16 *x, const bf16 *cos, const bf16 *sin, bf16 *out, long heads, long rows, long d, long head_step,
                 long row_step) {
    const __m512 minus = _mm512_set1_ps(-0.0f);
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++) {
            const bf16 *from = x + head * head_step + row * row_step;
            bf16 *to = out + (row * heads + head) * d;
            for (long c = 0; c < d; c += LANES) {
                const long other = c < d / 2 ? c + d / 2 : c - d / 2;
                __m512 turned = widen(_mm256_loadu_si256((const void *)(from + other)));
                if (c < d / 2)
                    turned = _mm512_xor_ps(turned, minus);
                const __m512 here = widen(_mm256_loadu_si256((const void *)(from + c)));
                const __m512 a = _mm512_mul_ps(here, widen(_mm256_loadu_si256((const void *)(cos + row * d + c))));
                const __m512 b = _mm512_mul_ps(turned, widen(_mm256_loadu_si256((const void *)(sin + row * d + c))));
                const __m512 sum = _mm512_add_ps(widen(narrow(a)), widen(narrow(b)));
                _mm256_storeu_si256((void *)(to + c), narrow(sum));
            }
        }
}

/* Rotary position embedding of queries and keys. sizes: heads, key heads, rows, d, and steps from head to head and from row to
 * row of q and of k. */
void slipstream_rotary(const bf16 *q, const bf16 *k, const bf16 *cos, const bf16 *sin, bf16 *q_out, bf16 *k_out,
                       const long *sizes) {
    turn(q, cos, sin, q_out, sizes[0], sizes[2], sizes[3], sizes[4], sizes[5]);
    turn(k, cos, sin, k_out, sizes[1], sizes[2], sizes[3], sizes[6], sizes[7]);
}

/* Random bits by Philox4x32-10 (Salmon et al. 2011), as core/sampling.py defines them: of `pairs` neighbouring tokens from 0
 * on, a whole number of 53 bits for each token, out [2 pairs]. counter: the three words after the number of a pair. Words
 * stand in lanes of 64 bits, of which a product reads the lower 32. There is room in out for a multiple of 16 numbers. */
void slipstream_philox(int64_t *out, long pairs, const uint32_t *counter, const uint32_t *key) {
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
