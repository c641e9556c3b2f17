/* The inner loops of deduplication and decontamination, called through ctypes on Arrow and NumPy buffers.

   There is no Python in here, so the interpreter's lock is free while it runs. Nothing is allocated: the caller
   gives every buffer. Integers are little-endian, as in Arrow. kernel.py documents the functions, and the
   tests hold them against a plain Python reference (tests/data/shingle_reference.py). */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "word hashes are defined on little-endian bytes"
#endif

/* One build serves every x86-64 processor: the loader picks the widest version that the machine runs. Other
   architectures have their vector instructions in the base set, so plain -O3 does there. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define EVERY_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "sse4.1", "default")))
#else
#define EVERY_WIDTH
#endif

enum { OTHER = 0, WORD = 1, SPACE = 2 }; /* classes of characters; the table has one byte for each code point */

#define CODE_POINTS 0x40000 /* as in kernel.py */
#define MULTIPLIER UINT64_C(0x9E3779B97F4A7C15) /* 2^64 / golden ratio, odd: a bijection modulo 2^64 */
#define LANES 32                                /* permutations that one pass over a document's shingles serves */
#define BLOCK 32                                /* bytes that are folded at once */
#define EACH UINT64_C(0x0101010101010101)       /* a byte, times this: eight of them */
#define HIGHEST (EACH * 0x80)
#define VALUES 1024                             /* shingles prepared at a time; on the stack */
#define STEPS 64                                /* of a comparison, before the next look whether it is in vain */

/* A bijection of 64-bit numbers whose output bits depend on all input bits. */
static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 32)) * MULTIPLIER;
    return value ^ (value >> 29);
}

/* The code point at `at` and its width in bytes, beyond ASCII; whether there is one that the tables hold. The bytes of
   others, and of broken UTF-8, go one by one. */
static inline int decode(const uint8_t *at, const uint8_t *stop, uint32_t *code, int *width) {
    int more = *at >= 0xF0 ? 3 : *at >= 0xE0 ? 2 : *at >= 0xC0 ? 1 : 0;
    *width = 1;
    if (more == 0 || stop - at <= more) return 0;
    uint32_t value = *at & (0x3F >> more);
    for (int i = 1; i <= more; i++) value = value << 6 | (at[i] & 0x3F);
    if (value >= CODE_POINTS) return 0;
    *width = more + 1;
    *code = value;
    return 1;
}

/* A code point in UTF-8; how many bytes that is. */
static inline int encode(uint32_t code, uint8_t *out) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    int more = code >= 0x10000 ? 3 : code >= 0x800 ? 2 : 1;
    for (int i = more; i > 0; i--, code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3F));
    out[0] = (uint8_t)(0xFF00 >> (more + 1) | code);
    return more + 1;
}

/* Whether an ASCII byte is white space as Python's `re` sees it. */
static inline uint8_t is_white(uint8_t byte) {
    return (byte == ' ') | ((uint8_t)(byte - '\t') < 5) | ((uint8_t)(byte - 0x1C) < 4);
}

/* Folds BLOCK bytes at once; whether all are ASCII and no two spaces follow one another, so that this is all there
   is to do. The compiler makes vector instructions of it. */
static inline int fold_block(const uint8_t *restrict at, uint8_t last, uint8_t *restrict out) {
    uint8_t beyond = 0, repeated = last == ' ' && is_white(*at);
    for (int i = 0; i < BLOCK; i++) {
        uint8_t lower = at[i] | (uint8_t)(((uint8_t)(at[i] - 'A') < 26) << 5);
        out[i] = is_white(at[i]) ? ' ' : lower;
        beyond |= at[i];
        repeated |= is_white(at[i]) & is_white(at[i + 1]);
    }
    return beyond < 0x80 && !repeated;
}

/* Letters to lower case, each run of white space to one space, none at the ends.

   fold[code] is what becomes of a code point: its lower case, or a space. `out` takes 3 bytes for every 2 there are
   (no lower case is longer than that) and BLOCK more, which are zero at the end; out_offsets[count + 1]. Broken UTF-8
   stays as it is. */
EVERY_WIDTH
void normalise(const uint8_t *text, const int32_t *offsets, int64_t count, const uint32_t *fold, uint8_t *out,
               int64_t *out_offsets) {
    uint8_t *begin = out;
    out_offsets[0] = 0;
    for (int64_t document = 0; document < count; document++) {
        const uint8_t *at = text + offsets[document], *stop = text + offsets[document + 1];
        uint8_t last = ' '; /* so that leading white space is dropped as every other repeated space is */
        while (at < stop) {
            const uint8_t *until = stop;
            if (stop - at > BLOCK) {
                if (fold_block(at, last, out)) {
                    at += BLOCK;
                    out += BLOCK;
                    last = out[-1];
                    continue;
                }
                until = at + BLOCK;
            }
            while (at < until) {
                if (*at < 0x80) { /* without branches: where a word ends cannot be predicted */
                    uint8_t byte = (uint8_t)fold[*at++];
                    *out = byte;
                    out += (byte != ' ') | (last != ' ');
                    last = byte;
                    continue;
                }
                uint32_t code = 0;
                int width, written = 1;
                *out = *at;
                if (decode(at, stop, &code, &width)) written = encode(code = fold[code], out);
                at += width;
                if (code != ' ' || last != ' ') out += written;
                last = code == ' ' ? ' ' : 0;
            }
        }
        if (out - begin > out_offsets[document] && last == ' ') out--;
        out_offsets[document + 1] = out - begin;
    }
    memset(out, 0, BLOCK);
}

/* Eight bytes at a time. Words of up to eight bytes never share a hash: they hold no zero byte, and mix is a
   bijection. Reads up to seven bytes past the word. */
static inline uint64_t hash_word(const uint8_t *word, int64_t length) {
    uint64_t hash = 0, chunk;
    for (; length > 8; word += 8, length -= 8) {
        memcpy(&chunk, word, 8);
        hash = mix(hash * MULTIPLIER + chunk);
    }
    memcpy(&chunk, word, 8);
    chunk &= UINT64_MAX >> (64 - 8 * length);
    return mix(hash * MULTIPLIER + chunk);
}

/* The bytes of a chunk that are no ASCII letter, digit or underscore: the highest bit of each is set, no other. */
static inline uint64_t no_word_bytes(uint64_t chunk) {
    uint64_t low = chunk & ~HIGHEST, letter = low | EACH * 0x20, underscore = low ^ EACH * '_';
    uint64_t words = ((letter + EACH * (0x80 - 'a')) & ~(letter + EACH * (0x7F - 'z'))) |
                     ((low + EACH * (0x80 - '0')) & ~(low + EACH * (0x7F - '9'))) | ~(underscore + EACH * 0x7F);
    return (~words | chunk) & HIGHEST;
}

/* Where the word that begins at `at` ends; `at` itself where none does. Reads up to seven bytes past the text. */
static inline const uint8_t *word_end(const uint8_t *at, const uint8_t *stop, const uint8_t *classes) {
    while (at < stop) {
        uint64_t chunk, others;
        memcpy(&chunk, at, 8);
        others = no_word_bytes(chunk);
        if (!others) {
            at += 8;
            continue;
        }
        at += __builtin_ctzll(others) >> 3;
        uint32_t code;
        int width;
        if (at >= stop || *at < 0x80 || !decode(at, stop, &code, &width) || classes[code] != WORD) break;
        at += width;
    }
    return at < stop ? at : stop;
}

/* Hashes of the words of one text, in order; how many there are. */
static int64_t hash_words(const uint8_t *at, const uint8_t *stop, const uint8_t *classes, uint64_t *out) {
    uint64_t *begin = out;
    while (at < stop) {
        uint64_t chunk, others;
        memcpy(&chunk, at, 8);
        others = no_word_bytes(chunk);
        int64_t length = others ? __builtin_ctzll(others) >> 3 : 8;
        if (length < 8 && at + length < stop && at[length] < 0x80) { /* nearly always; no branch on whether one begins */
            uint64_t below = ((others & -others) - 1) >> 7;
            *out = mix(chunk & below);
            out += length > 0;
        } else {
            const uint8_t *end = word_end(at, stop, classes);
            if (end > at) *out++ = hash_word(at, end - at);
            length = end - at;
        }
        at += length + 1; /* what is left of a character that is none of a word is none of a word either */
    }
    return out - begin;
}

/* Each word hash gives place to the hash of the n-gram that begins with it: a polynomial in MULTIPLIER, mixed.
   In blocks and one word at a time, so that the compiler makes vector instructions of it. */
static inline void combine(uint64_t *words, int64_t grams, int64_t n) {
    uint64_t block[VALUES];
    for (int64_t start = 0; start < grams; start += VALUES) {
        int64_t length = grams - start < VALUES ? grams - start : VALUES;
        uint64_t *first = words + start;
        for (int64_t i = 0; i < length; i++) block[i] = first[i];
        for (int64_t k = 1; k < n; k++)
            for (int64_t i = 0; i < length; i++) block[i] = block[i] * MULTIPLIER + first[i + k];
        for (int64_t i = 0; i < length; i++) first[i] = mix(block[i]);
    }
}

/* Hashes of the word n-grams of normalised texts, in the order of the text and as often as they occur.

   A text of fewer than n words has one n-gram, of all its words; a text without words has none. `text` must be
   readable for eight bytes past its end; `out` takes (bytes + documents) / 2 + 1 hashes; out_offsets[count + 1]. */
EVERY_WIDTH
void shingles(const uint8_t *text, const int64_t *offsets, int64_t count, const uint8_t *classes, int64_t n,
              uint64_t *out, int64_t *out_offsets) {
    int64_t end = 0;
    out_offsets[0] = 0;
    for (int64_t document = 0; document < count; document++) {
        uint64_t *words = out + end;
        int64_t length = hash_words(text + offsets[document], text + offsets[document + 1], classes, words);
        int64_t width = length < n ? length : n, grams = length ? length - width + 1 : 0;
        combine(words, grams, width);
        end += grams;
        out_offsets[document + 1] = end;
    }
}

/* The 32-bit finalizer of MurmurHash3 (Appleby, public domain), which datasketch applies before permuting. */
static inline uint32_t finalize(uint32_t value) {
    value = (value ^ (value >> 16)) * UINT32_C(0x85EBCA6B);
    value = (value ^ (value >> 13)) * UINT32_C(0xC2B2AE35);
    return value ^ (value >> 16);
}

/* MinHash signatures: out[document, p] = min over its hashes h of finalize(h mod 2^32) * factors[p] + addends[p]
   mod 2^32; all ones for a document without hashes. `permutations` must be a multiple of LANES. */
EVERY_WIDTH
void sign(const uint64_t *hashes, const int64_t *offsets, int64_t count, const uint32_t *factors,
          const uint32_t *addends, int64_t permutations, uint32_t *out) {
    uint32_t values[VALUES];
    memset(out, 0xFF, (size_t)(count * permutations) * sizeof *out);
    for (int64_t document = 0; document < count; document++, out += permutations) {
        for (int64_t start = offsets[document]; start < offsets[document + 1]; start += VALUES) {
            int64_t left = offsets[document + 1] - start, length = left < VALUES ? left : VALUES;
            for (int64_t i = 0; i < length; i++) values[i] = finalize((uint32_t)hashes[start + i]);
            for (int64_t block = 0; block < permutations; block += LANES) {
                uint32_t best[LANES];
                memcpy(best, out + block, sizeof best);
                for (int64_t i = 0; i < length; i++)
                    for (int lane = 0; lane < LANES; lane++) { /* becomes a few vector instructions */
                        uint32_t value = values[i] * factors[block + lane] + addends[block + lane];
                        best[lane] = value < best[lane] ? value : best[lane];
                    }
                memcpy(out + block, best, sizeof best);
            }
        }
    }
}

/* How many hashes each pair of sorted sets has in common, without their lowest `shift` bits.

   sets[i] is the address of set i, of lengths[i] distinct hashes; pairs[count][2] are indices into sets. A pair that
   cannot have least[pair] in common is given up, and its number is then anything from the true one to below that. */
void shared(const uint64_t *const *sets, const int64_t *lengths, const int64_t *pairs, int64_t count, int shift,
            int64_t *out, const int64_t *least) {
    for (int64_t pair = 0; pair < count; pair++) {
        const uint64_t *a = sets[pairs[2 * pair]], *b = sets[pairs[2 * pair + 1]];
        const uint64_t *a_end = a + lengths[pairs[2 * pair]], *b_end = b + lengths[pairs[2 * pair + 1]];
        int64_t common = 0, left;
        while ((left = a_end - a < b_end - b ? a_end - a : b_end - b) > 0) {
            if (common + left < least[pair]) {
                common += left;
                break;
            }
            int64_t steps = left < STEPS ? left : STEPS; /* each passes at most one hash of either side */
            for (int64_t i = 0; i < steps; i++) { /* without branches: which side moves cannot be predicted */
                uint64_t x = *a >> shift, y = *b >> shift;
                common += x == y;
                a += x <= y;
                b += y <= x;
            }
        }
        out[pair] = common;
    }
}
