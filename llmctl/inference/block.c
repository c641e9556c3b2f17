/* One block of a Llama for single tokens of many sequences, from the steps in kernel.c and the products in linear.c.

   It is what llmctl.model.transformer says in Python, which at one token costs as much as a third of the products. */

#include "steps.h"
#include <sched.h>

/* Up to so many bytes of weights each thread takes rows of its own: every thread then reads all weights, which must come
   from a cache, and meets the others once a block. Else threads share the rows and divide the weights. */
#define NEAR (4 << 20)
#define ROWS_EACH 12 /* at least, so that a weight that was read serves several rows */

/* Some rows of a block, and who helps. */
typedef struct {
    const Block *block;
    int64_t first, rows;
    Parallel parallel;
    unsigned threads;
} Part;

static int64_t size_of(const Block *block) { return block->attention.kind == FLOAT ? 4 : 2; }

static int64_t joined_of(const Block *block) { /* queries, keys and values of one row */
    return (block->attention.heads + 2 * block->attention.kv_heads) * block->attention.width;
}

static int64_t wide_of(const Block *block) {
    return joined_of(block) > 2 * block->inner ? joined_of(block) : 2 * block->inner;
}

int64_t block_scratch(const Block *block) {
    const int64_t queries = block->attention.heads * block->attention.width;
    return (block->width + queries + wide_of(block) + block->inner) * size_of(block);
}

/* Where intermediate results of a part's rows are, behind one another. */
typedef struct {
    char *normed, *mixed, *joined, *inner;
} Scratch;

static Scratch scratch_of(const Part *part) {
    const Block *block = part->block;
    const int64_t queries = block->attention.heads * block->attention.width, size = size_of(block);
    char *normed = (char *)block->scratch + part->first * block_scratch(block);
    char *mixed = normed + part->rows * block->width * size, *joined = mixed + part->rows * queries * size;
    return (Scratch){normed, mixed, joined, joined + part->rows * wide_of(block) * size};
}

static void product(const Part *part, const void *x, const void *weight, const void *bias, const void *residual,
                    void *out, int64_t width, int64_t outputs) {
    Linear job = {x, weight, bias, residual, out, part->rows, width, outputs, part->block->attention.kind, 0};
    linear(&job, part->parallel, part->threads);
}

/* Up to the keys and values, which rows of the same sequence see. */
static void begin(const Part *part) {
    const Block *block = part->block;
    const int64_t E = block->attention.width, K = block->attention.kv_heads, H = block->attention.heads;
    const int64_t D = block->width, wide = joined_of(block), size = size_of(block), first = part->first;
    const int32_t kind = block->attention.kind;
    const Scratch to = scratch_of(part);
    const char *keys = to.joined + H * E * size;
    rms_norm((const char *)block->x + first * D * size, block->norm, to.normed, part->rows, D, block->eps, kind);
    product(part, to.normed, block->qkv, block->qkv_bias, NULL, to.joined, D, wide);
    turn(to.joined, block->cosines + first * E, block->signed_sines + first * E, part->rows, wide, H + K, E, kind);
    keep(keys, keys + K * E * size, (char *)block->attention.data, block->places + first, part->rows, wide * size,
         K * E * size);
}

static void end(const Part *part) {
    const Block *block = part->block;
    const int64_t D = block->width, F = block->inner, queries = block->attention.heads * block->attention.width;
    const int64_t at = part->first * D * size_of(block);
    const int32_t kind = block->attention.kind;
    const Scratch to = scratch_of(part);
    char *out = (char *)block->out + at;
    Attention attention = block->attention;
    attention.q = to.joined, attention.out = to.mixed, attention.q_stride = joined_of(block);
    attention.places += 2 * part->first, attention.rows = part->rows;
    attend(&attention, part->parallel, part->threads);
    product(part, to.mixed, block->o, block->o_bias, (const char *)block->x + at, out, queries, D);

    rms_norm(out, block->norm_after, to.normed, part->rows, D, block->eps_after, kind);
    product(part, to.normed, block->gate_up, block->gate_up_bias, NULL, to.joined, D, 2 * F);
    gated(to.joined, to.inner, part->rows, F, kind);
    product(part, to.inner, block->down, block->down_bias, out, out, F, D);
}

/* A block in parts, each begun before any is ended. */
typedef struct {
    const Block *block;
    int64_t parts;
    int32_t next, begun, ending;
} Split;

static Part part_of(const Split *split, int64_t number) {
    const int64_t rows = split->block->attention.rows, first = rows * number / split->parts;
    return (Part){split->block, first, rows * (number + 1) / split->parts - first, NULL, 1};
}

/* Take one part after the other; several threads may. */
static void split_some(void *given) {
    Split *split = given;
    int64_t number;
    while ((number = __atomic_fetch_add(&split->next, 1, __ATOMIC_RELAXED)) < split->parts) {
        const Part part = part_of(split, number);
        begin(&part);
        __atomic_fetch_add(&split->begun, 1, __ATOMIC_RELEASE);
    }
    for (int spins = 0; __atomic_load_n(&split->begun, __ATOMIC_ACQUIRE) < split->parts; spins++)
        if (spins > 1000) sched_yield(); /* another process may have the core of the thread that is waited for */
    while ((number = __atomic_fetch_add(&split->ending, 1, __ATOMIC_RELAXED)) < split->parts) {
        const Part part = part_of(split, number);
        end(&part);
    }
}

int64_t block_bytes(const Block *block) {
    const int64_t queries = block->attention.heads * block->attention.width;
    return block->width * (joined_of(block) + queries + 3 * block->inner) * size_of(block);
}

void block(Block *block, Parallel parallel, unsigned threads) {
    const int64_t rows = block->attention.rows, weights = block_bytes(block);
    if (parallel && threads > 1 && weights <= NEAR && rows >= ROWS_EACH * (int64_t)threads) {
        Split split = {block, threads, 0, 0, 0};
        parallel(split_some, &split, threads, 0);
        return;
    }
    const Part whole = {block, 0, rows, parallel, threads};
    begin(&whole);
    end(&whole);
}
