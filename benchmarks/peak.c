/* How many operations a second this processor does on numbers that lie in registers: dot products of bfloat16, and
 * multiplications of float32. Prints both in 1e9 operations a second. One argument: threads. */
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SUMS = 12, ROUNDS = 5, MOST = 64 };
static const long TIMES = 20000000;
static float kept[MOST];

#define HOLD                                                                                                           \
    __asm__ volatile("" ::"v"(sum[0]), "v"(sum[1]), "v"(sum[2]), "v"(sum[3]), "v"(sum[4]), "v"(sum[5]), "v"(sum[6]),   \
                     "v"(sum[7]), "v"(sum[8]), "v"(sum[9]), "v"(sum[10]), "v"(sum[11]))

static void *dots(void *place) {
    __m512 sum[SUMS];
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < SUMS; i++)
        sum[i] = _mm512_setzero_ps();
    for (long time = 0; time < TIMES; time++) {
        for (int i = 0; i < SUMS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], ones, ones);
        HOLD;
    }
    *(float *)place = _mm512_reduce_add_ps(sum[0]);
    return 0;
}

static void *products(void *place) {
    __m512 sum[SUMS];
    const __m512 ones = _mm512_set1_ps(1.0f);
    for (int i = 0; i < SUMS; i++)
        sum[i] = _mm512_setzero_ps();
    for (long time = 0; time < TIMES; time++) {
        for (int i = 0; i < SUMS; i++)
            sum[i] = _mm512_fmadd_ps(ones, ones, sum[i]);
        HOLD;
    }
    *(float *)place = _mm512_reduce_add_ps(sum[0]);
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double peak(void *(*work)(void *), double operations, int threads) {
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t made[MOST];
        const double began = now();
        for (int i = 0; i < threads; i++)
            pthread_create(&made[i], 0, work, &kept[i]);
        for (int i = 0; i < threads; i++)
            pthread_join(made[i], 0);
        const double rate = SUMS * operations * TIMES * threads / (now() - began) / 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}

int main(int count, char **given) {
    const int threads = count > 1 ? atoi(given[1]) : 1;
    printf("%.0f %.0f\n", peak(dots, 64, threads), peak(products, 32, threads));
    return 0;
}
