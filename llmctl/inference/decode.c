/* Whole steps of a model of blocks as in block.c, for sequences that generate: from the last token of each to the next,
   and from there on, several steps in one call.

   Between two steps there is little to do, and Python would take as long for it as a small model for its products. Where
   the weights come from a cache, each thread takes sequences of its own and never meets the others. */

#include "steps.h"

#define NEAR (8 << 20) /* bytes of weights that every thread may read for itself */

typedef struct {
    const Block *blocks;                 /* [layers], with all that no step changes */
    const void *embedding;               /* [vocab, width] */
    const void *norm, *head;             /* the weight of the last norm, and the output matrix as linear.c reads it */
    const float *cosines, *signed_sines; /* [positions, width of a head] */
    const int32_t *tables;               /* [sequences, table_width], blocks of the cache */
    const int64_t *lengths;              /* [sequences], tokens, of which the cache holds all but the last */
    const int64_t *limits;               /* [sequences], most tokens to choose, 1 to `steps` */
    const int64_t *ends, *ends_from;     /* ids that end an answer, and [sequences + 1], where those of each begin */
    const Manner *manners;               /* [sequences], but for their numbers */
    const double *numbers;               /* [sequences, steps] */
    int64_t *tokens;                     /* [sequences, 1 + steps], the first of which are given: the last ones so far */
    float *logprobs;                     /* [sequences, steps] */
    int64_t *counts;                     /* [sequences], how many tokens were chosen */
    char *scratch;                       /* see decode_scratch */
    int64_t sequences, layers, vocab, steps, table_width, parts;
    float eps, scale; /* of the norm, of embeddings */
    int32_t next, failed;
} Decoding;

/* What a thread, or all of them together, work on. */
typedef struct {
    int64_t *row; /* the sequences that go on */
    int64_t *places, *chosen;
    int32_t *seen;
    float *cosines, *signed_sines, *logits, *masses, *logprobs, *peaks;
    Manner *manners;
    char *x, *out, *rounded, *blocks;
    int64_t bytes;
} Memory;

static Memory memory_of(const Decoding *job, int64_t rows, int64_t threads, char *from) {
    const Block *block = job->blocks;
    const int64_t size = block->attention.kind == FLOAT ? 4 : 2, E = block->attention.width, V = job->vocab;
    Memory to = {0};
#define TAKE(name, count)                  \
    to.name = (void *)(from + to.bytes);   \
    to.bytes += ((count) + 63) / 64 * 64;
    TAKE(row, rows * 8)
    TAKE(places, rows * 8)
    TAKE(chosen, rows * 8)
    TAKE(seen, rows * 8)
    TAKE(cosines, rows * E * 4)
    TAKE(signed_sines, rows * E * 4)
    TAKE(logits, rows * V * 4)
    TAKE(masses, threads * (V + 16) * 4)
    TAKE(logprobs, rows * 4)
    TAKE(peaks, rows * 4)
    TAKE(manners, rows * (int64_t)sizeof(Manner))
    TAKE(x, rows * block->width * size)
    TAKE(out, rows * block->width * size)
    TAKE(rounded, size == 4 ? 0 : rows * V * size)
    TAKE(blocks, rows * block_scratch(block))
#undef TAKE
    return to;
}

/* Where the last token of the sequence in row `at` is, and what it means. */
static void read_token(const Decoding *job, const Memory *to, int64_t at, int64_t step) {
    const Block *block = job->blocks;
    const int64_t E = block->attention.width, D = block->width, size = block->attention.block, number = to->row[at];
    const int64_t place = job->lengths[number] - 1 + step, token = job->tokens[number * (1 + job->steps) + step];
    const int32_t kind = block->attention.kind;
    to->places[at] = job->tables[number * job->table_width + place / size] * size + place % size;
    to->seen[2 * at] = (int32_t)number, to->seen[2 * at + 1] = (int32_t)place + 1;
    memcpy(to->cosines + at * E, job->cosines + place * E, (size_t)E * 4);
    memcpy(to->signed_sines + at * E, job->signed_sines + place * E, (size_t)E * 4);
    to->manners[at] = job->manners[number];
    to->manners[at].number = job->numbers[number * job->steps + step];
    if (job->scale == 1.0f) {
        const int64_t bytes = D * (kind == FLOAT ? 4 : 2);
        memcpy(to->x + at * bytes, (const char *)job->embedding + token * bytes, (size_t)bytes);
        return;
    }
    for (int64_t d = 0; d < D; d++)
        store_one(to->x, at * D + d, one(job->embedding, token * D + d, kind) * job->scale, kind);
}

static void run_layers(const Decoding *job, Memory *to, int64_t rows, Parallel parallel, unsigned threads) {
    for (int64_t layer = 0; layer < job->layers; layer++) {
        Block one = job->blocks[layer];
        one.x = to->x, one.out = to->out, one.scratch = to->blocks;
        one.cosines = to->cosines, one.signed_sines = to->signed_sines, one.places = to->places;
        one.attention.tables = job->tables, one.attention.table_width = job->table_width;
        one.attention.places = to->seen, one.attention.rows = rows;
        block(&one, parallel, threads);
        char *read = to->x;
        to->x = to->out, to->out = read;
    }
}

static void choose_tokens(const Decoding *job, const Memory *to, int64_t rows, Parallel parallel, unsigned threads) {
    const int32_t kind = job->blocks->attention.kind;
    const int64_t D = job->blocks->width, V = job->vocab;
    void *logits = kind == FLOAT ? (void *)to->logits : to->rounded;
    rms_norm(to->x, job->norm, to->out, rows, D, job->eps, kind);
    Linear head = {to->out, job->head, NULL, NULL, logits, rows, D, V, kind, 0};
    linear(&head, parallel, threads);
    if (kind != FLOAT)
        for (int64_t i = 0; i < rows * V; i++) to->logits[i] = one(logits, i, kind);
    Choice choice = {to->logits, to->logits,   to->manners, to->masses, to->chosen,
                     to->logprobs, to->peaks, rows,        V,          0, 0};
    choose(&choice, parallel, threads);
}

static int ends(const Decoding *job, int64_t number, int64_t token) {
    for (int64_t at = job->ends_from[number]; at < job->ends_from[number + 1]; at++)
        if (job->ends[at] == token) return 1;
    return 0;
}

/* Choose tokens of `count` sequences from `first` on until each has ended or has as many as it may. */
static void generate(Decoding *job, int64_t first, int64_t count, Memory to, Parallel parallel, unsigned threads) {
    for (int64_t at = 0; at < count; at++) to.row[at] = first + at;
    for (int64_t step = 0; count; step++) {
        for (int64_t at = 0; at < count; at++) read_token(job, &to, at, step);
        run_layers(job, &to, count, parallel, threads);
        choose_tokens(job, &to, count, parallel, threads);
        int64_t left = 0;
        for (int64_t at = 0; at < count; at++) {
            const int64_t number = to.row[at], token = to.chosen[at];
            if (!isfinite(to.peaks[at])) {
                __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
                return;
            }
            job->tokens[number * (1 + job->steps) + step + 1] = token;
            job->logprobs[number * job->steps + step] = to.logprobs[at];
            job->counts[number] = step + 1;
            if (step + 1 < job->limits[number] && !ends(job, number, token)) to.row[left++] = number;
        }
        count = left;
    }
}

/* How many parts of sequences are run each by one thread; 0 where all threads run all sequences. */
static int64_t parts_of(const Decoding *job, int64_t threads) {
    const int64_t blocks = block_bytes(job->blocks) * job->layers, size = job->blocks->attention.kind == FLOAT ? 4 : 2;
    if (blocks + job->blocks->width * job->vocab * size > NEAR) return 0;
    return job->sequences < threads ? job->sequences : threads;
}

/* Take one part after the other; several threads may. */
static void generate_some(void *given) {
    Decoding *job = given;
    int64_t number;
    const int64_t parts = job->parts, most = (job->sequences + parts - 1) / parts;
    while ((number = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < parts) {
        const int64_t first = job->sequences * number / parts, end = job->sequences * (number + 1) / parts;
        const int64_t bytes = memory_of(job, most, 1, NULL).bytes;
        generate(job, first, end - first, memory_of(job, most, 1, job->scratch + number * bytes), NULL, 1);
    }
}

/* Bytes of `scratch` that `decode` needs. */
int64_t decode_scratch(const Decoding *job, unsigned threads) {
    const int64_t parts = parts_of(job, threads);
    if (!parts) return memory_of(job, job->sequences, threads, NULL).bytes;
    return parts * memory_of(job, (job->sequences + parts - 1) / parts, 1, NULL).bytes;
}

/* Whether all logits were finite. */
int32_t decode(Decoding *job, Parallel parallel, unsigned threads) {
    job->next = job->failed = 0;
    job->parts = parts_of(job, threads);
    if (job->parts)
        share(generate_some, job, parallel, (unsigned)job->parts);
    else
        generate(job, 0, job->sequences, memory_of(job, job->sequences, threads, job->scratch), parallel, threads);
    return !job->failed;
}
