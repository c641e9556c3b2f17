/* The choice of the next tokens, called through ctypes as kernel.c is: what sampler.py says in torch, row by row and with
   nothing but one row's probabilities in memory. */

#include "steps.h"
#include <float.h>

#define CHUNK 256 /* ids whose probabilities are added up in float; the sums of chunks are added in double */
#define WIDEST 16 /* rows of `masses` are a multiple of so many numbers long */

/* The largest number and where it is first; NaN where there is one. */
static float peak_of(const float *x, int64_t count, int64_t *at) {
    float best = -INFINITY;
    whole_lanes odd = {0};
    for (int64_t from = 0; from < count; from += CHUNK) {
        const int64_t size = count - from < CHUNK ? count - from : CHUNK, whole = size - size % LANES;
        lanes most = all(-INFINITY);
        for (int64_t i = 0; i < whole; i += LANES) {
            const lanes some = load(x, from + i, FLOAT);
            odd |= some != some;
            most = chosen(some > most, some, most);
        }
        float top = largest_of(most);
        for (int64_t i = whole; i < size; i++) {
            if (x[from + i] != x[from + i]) return NAN;
            top = x[from + i] > top ? x[from + i] : top;
        }
        if (top > best) {
            best = top;
            for (*at = from; x[*at] != top;) ++*at;
        }
    }
    for (int i = 0; i < LANES; i++)
        if (odd[i]) return NAN;
    return best;
}

/* e^((x - peak) / temperature) of each number, 0 behind the last; their sum. */
static double masses_of(const float *x, int64_t count, float peak, float temperature, float *masses) {
    const float factor = 1.0f / temperature;
    double total = 0;
    for (int64_t from = 0; from < count; from += CHUNK) {
        lanes sum = all(0.0f);
        for (int64_t i = from; i < from + CHUNK && i < count; i += LANES) {
            lanes some = all(-INFINITY);
            if (count - i >= LANES)
                some = load(x, i, FLOAT);
            else
                memcpy(&some, x + i, (size_t)(count - i) * sizeof(float));
            some = exponential((some - peak) * factor);
            sum += some;
            if (masses) store(masses, i, some, FLOAT);
        }
        total += sum_of(sum);
    }
    return total;
}

/* The sum of a chunk's masses that are `least` at least, or how many they are. */
INLINE float chunk_from(const float *masses, int64_t from, int64_t count, float least, const int counted) {
    lanes sum = all(0.0f);
    for (int64_t i = from; i < from + CHUNK && i < count; i += LANES) {
        const lanes some = load(masses, i, FLOAT);
        sum += chosen(some >= least, counted ? all(1.0f) : some, all(0.0f));
    }
    return sum_of(sum);
}

INLINE double sum_from(const float *masses, int64_t count, float least, const int counted) {
    double total = 0;
    for (int64_t from = 0; from < count; from += CHUNK) total += chunk_from(masses, from, count, least, counted);
    return total;
}

/* The largest number such that the masses from it on are so many, or have such a sum; what ties with the last is among
   them. Floats from 0 on are in the order of their bits: halve the range from 0, which all reach, to what is above 1. */
INLINE float least_of(const float *masses, int64_t count, double wanted, const int counted) {
    uint32_t low = 0, high = 0x3F800001;
    float least;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        memcpy(&least, &middle, sizeof least);
        if (sum_from(masses, count, least, counted) >= wanted)
            low = middle;
        else
            high = middle;
    }
    memcpy(&least, &low, sizeof least);
    return least;
}

/* The first id at which the sum of masses that are `least` at least exceeds `target`; where rounding leaves none, the last
   that counts. */
static int64_t inverse(const float *masses, int64_t count, float least, double target) {
    double before = 0, reached = 0;
    int64_t last = 0, found = -1;
    for (int64_t from = 0; from < count && reached <= target; from += CHUNK) {
        const double sum = chunk_from(masses, from, count, least, 0);
        if (sum == 0) continue;
        last = from, before = reached;
        reached += sum;
    }
    for (int64_t i = last; i < last + CHUNK && i < count && before <= target; i++) {
        if (masses[i] == 0.0f || masses[i] < least) continue;
        found = i;
        before += masses[i];
    }
    return found;
}

static void choose_row(const Choice *job, int64_t row, float *masses) {
    const Manner *manner = job->manners + row;
    const float *x = job->logits + row * job->vocab, *raw = job->raw + row * job->vocab;
    const int64_t count = job->vocab, padded = (count + WIDEST - 1) / WIDEST * WIDEST;
    int64_t token = -1, of_raw = -1;
    const float peak = peak_of(x, count, &token);
    job->peaks[row] = x == raw ? peak : peak_of(raw, count, &of_raw);
    job->tokens[row] = token, job->logprobs[row] = 0.0f;
    if (token < 0 || !isfinite(job->peaks[row])) return;
    const float temperature = (float)fmin(fmax(manner->temperature, FLT_MIN), FLT_MAX / 4);
    double total = 1;
    int cut = 0;
    if (manner->temperature > 0) {
        memset(masses + padded - WIDEST, 0, WIDEST * sizeof(float));
        total = masses_of(x, count, peak, temperature, masses);
        float least = 0;
        if (manner->top_k > 0 && manner->top_k < (double)count) least = least_of(masses, padded, manner->top_k, 1);
        if (manner->top_p < 1) {
            const float nucleus = least_of(masses, padded, manner->top_p * sum_from(masses, padded, least, 0), 0);
            least = nucleus > least ? nucleus : least;
        }
        if (manner->min_p > least) least = (float)manner->min_p; /* the largest mass is 1 */
        cut = least > 0;
        if (cut) total = sum_from(masses, padded, least, 0);
        job->tokens[row] = token = inverse(masses, padded, least, manner->number * total);
    }
    if (manner->wanted == SAMPLED && manner->temperature > 0)
        job->logprobs[row] = (x[token] - peak) / temperature - (float)log(total);
    if (manner->wanted == RAW) {
        if (cut || x != raw || manner->temperature != 1) total = masses_of(raw, count, job->peaks[row], 1.0f, NULL);
        job->logprobs[row] = raw[token] - job->peaks[row] - (float)log(total);
    }
}

/* Take one row after the other until none is left; several threads may. */
static void choose_some(void *given) {
    Choice *job = given;
    const int64_t padded = (job->vocab + WIDEST - 1) / WIDEST * WIDEST;
    float *masses = job->masses + __atomic_fetch_add(&job->worker, 1, __ATOMIC_RELAXED) * padded;
    int64_t row;
    while ((row = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->rows) choose_row(job, row, masses);
}

void choose(Choice *job, Parallel parallel, unsigned threads) {
    job->next = job->worker = 0;
    share(choose_some, job, parallel, threads);
}
