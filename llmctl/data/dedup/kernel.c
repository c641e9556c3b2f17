/* The inner loops of deduplication and decontamination, called through ctypes on Arrow and NumPy buffers.

   There is no Python in here, so the interpreter's lock is free while it runs. Nothing is allocated: the caller
   gives every buffer. Integers are little-endian, as in Arrow. kernel.py documents the functions, and the
   tests hold them against a plain Python reference (tests/data/reference.py). */

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

#define LAST_CODE_POINT 0x10FFFF
#define MULTIPLIER UINT64_C(0x9E3779B97F4A7C15) /* 2^64 / golden ratio, odd: a bijection modulo 2^64 */
#define LANES 32                                /* permutations that one pass over a document's shingles serves */
#define VALUES 1024                             /* shingles prepared at a time; on the stack */
#define STEPS 64                                /* of a comparison, before the next look whether it is in vain */

/* A bijection of 64-bit numbers whose output bits depend on all input bits. */
static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 32)) * MULTIPLIER;
    return value ^ (value >> 29);
}

/* Class of the character at `at`, and its width in bytes. Broken UTF-8 counts byte by byte as OTHER. */
static inline int class_at(const uint8_t *at, const uint8_t *stop, const uint8_t *classes, int *width) {
    uint32_t code = *at;
    *width = 1;
    if (code < 0x80) return classes[code];
    int more = code >= 0xF0 ? 3 : code >= 0xE0 ? 2 : code >= 0xC0 ? 1 : 0;
    if (more == 0 || stop - at <= more) return OTHER;
    code &= 0x3F >> more;
    for (int i = 1; i <= more; i++) code = code << 6 | (at[i] & 0x3F);
    *width = more + 1;
    return code <= LAST_CODE_POINT ? classes[code] : OTHER;
}

/* ASCII letters to lower case, each run of white space to one space, none at the ends.

   fold[byte] is what becomes of an ASCII byte. `out` takes one byte more than there are; out_offsets[count + 1]. */
void normalise(const uint8_t *text, const int32_t *offsets, int64_t count, const uint8_t *classes,
               const uint8_t *fold, uint8_t *out, int64_t *out_offsets) {
    uint8_t *begin = out;
    out_offsets[0] = 0;
    for (int64_t document = 0; document < count; document++) {
        const uint8_t *at = text + offsets[document], *stop = text + offsets[document + 1];
        uint8_t last = ' '; /* so that leading white space is dropped as every other repeated space is */
        while (at < stop) {
            if (*at < 0x80) { /* without branches: where a word ends cannot be predicted */
                uint8_t byte = fold[*at++];
                *out = byte;
                out += (byte != ' ') | (last != ' ');
                last = byte;
                continue;
            }
            int width, class = class_at(at, stop, classes, &width);
            if (class != SPACE) {
                memmove(out, at, (size_t)width);
                out += width;
            } else if (last != ' ') {
                *out++ = ' ';
            }
            last = class == SPACE ? ' ' : 0;
            at += width;
        }
        if (out - begin > out_offsets[document] && last == ' ') out--;
        out_offsets[document + 1] = out - begin;
    }
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

/* Hashes of the words of one text, in order; how many there are. */
static int64_t hash_words(const uint8_t *at, const uint8_t *stop, const uint8_t *classes, uint64_t *out) {
    uint64_t *begin = out;
    while (at < stop) {
        const uint8_t *word = at;
        int width = 0, class = OTHER;
        while (at < stop && (class = class_at(at, stop, classes, &width)) == WORD) at += width;
        if (at > word) *out++ = hash_word(word, at - word);
        if (at < stop) at += width; /* the character that ended the word, or that is none */
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
