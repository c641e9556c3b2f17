/* What hostile pages are known by, found in one pass over a page's bytes. Called through ctypes; markup.py documents it.

   Tags are read as a browser's tokenizer reads them, but from every `<` on: also from those in comments, scripts and
   quoted values, because what stands there may be meant to hide where a parser sees tags. It allocates nothing. */

#define _GNU_SOURCE /* memmem */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LONGEST_NAME 64    /* bytes of a name, and of an unquoted value, that count as one attribute: a tag of bounded */
#define LONGEST_VALUE 2000 /* length is a bound on the time, so long ones are counted in pieces */
#define DEPTH 64           /* formatting tags open within one another that are followed */

enum { OTHER = -1, INERT = -2 }; /* kinds of tags beside the formatting ones, which are numbered */

static const char *const FORMATTING[] = {"a", "b", "big", "code", "em", "font", "i", "nobr", "s",
                                         "small", "strike", "strong", "tt", "u"};
/* Tags that may stand between a formatting tag and its end without keeping it from closing. */
static const char *const WITHIN[] = {"abbr", "br", "cite", "img", "q", "span", "sub", "sup", "wbr"};

struct found {
    int64_t tags;        /* `<` signs */
    int64_t attributes;  /* most of one tag; reading ends at the bound */
    int64_t unclosed;    /* formatting tags whose end does not follow with nothing but text, inert tags and pairs between */
    int64_t mathematics; /* 1 where there is a <math>, or TeX in a script */
};

static inline int is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r' && byte != '\v'); }

static inline int is_letter(uint8_t byte) { return (uint8_t)((byte | 0x20) - 'a') < 26; }

static int among(const uint8_t *name, size_t length, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *known = names[i];
        size_t at = 0;
        while (at < length && known[at] == (char)(name[at] | 0x20)) at++;
        if (at == length && !known[at]) return (int)i;
    }
    return -1;
}

static int kind_of(const uint8_t *name, size_t length) {
    if (length == 0 || length > 6) return OTHER;
    int formatting = among(name, length, FORMATTING, sizeof FORMATTING / sizeof *FORMATTING);
    if (formatting >= 0) return formatting;
    return among(name, length, WITHIN, sizeof WITHIN / sizeof *WITHIN) >= 0 ? INERT : OTHER;
}

/* What has been open so far in the one place where pairs can still close. */
struct open {
    int kinds[DEPTH];
    int count;
};

/* Whatever is open stays open: each of it counts. */
static inline void seal(struct open *open, struct found *found) {
    found->unclosed += open->count;
    open->count = 0;
}

/* The end of the value that begins at `at`, behind its quote; `stop` where the quote never comes again. */
static const uint8_t *behind_quoted(const uint8_t *at, const uint8_t *stop) {
    const uint8_t *end = memchr(at + 1, *at, (size_t)(stop - at - 1));
    return end ? end + 1 : stop;
}

/* Read the attributes from `at` on, behind a tag's name.

   Returns what is behind the tag's `>`, or `stop` where there is none. *nested is the first `<` within a quoted value,
   or NULL. */
static const uint8_t *attributes(const uint8_t *at, const uint8_t *stop, int64_t most, struct found *found,
                                 const uint8_t **nested) {
    int64_t count = 0;
    *nested = NULL;
    for (;;) {
        while (at < stop && (is_space(*at) || *at == '/')) at++;
        if (at == stop) return stop;
        if (*at == '>') return at + 1;
        if (++count > found->attributes) found->attributes = count;
        if (count >= most) return stop;
        const uint8_t *limit = stop - at > LONGEST_NAME ? at + LONGEST_NAME : stop;
        at++; /* a name may begin with `=` */
        while (at < limit && !is_space(*at) && *at != '/' && *at != '>' && *at != '=') at++;
        const uint8_t *value = at;
        while (value < stop && is_space(*value)) value++;
        if (value == stop || *value != '=') continue;
        value++;
        while (value < stop && is_space(*value)) value++;
        if (value == stop) return stop;
        at = value;
        if (*at == '"' || *at == '\'') {
            at = behind_quoted(value, stop);
            if (!*nested) *nested = memchr(value, '<', (size_t)(at - value));
        } else {
            limit = stop - at > LONGEST_VALUE ? at + LONGEST_VALUE : stop;
            while (at < limit && !is_space(*at) && *at != '>') at++;
        }
    }
}

static int64_t signs(const uint8_t *html, int64_t size) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; i++) count += html[i] == '<';
    return count;
}

void scan_markup(const uint8_t *html, int64_t size, int64_t most_attributes, struct found *found) {
    const uint8_t *stop = html + size, *at = html;
    struct open open = {.count = 0};
    *found = (struct found){.tags = signs(html, size), .mathematics = memmem(html, (size_t)size, "math/tex", 8) != NULL};
    while (found->attributes < most_attributes && (at = memchr(at, '<', (size_t)(stop - at)))) {
        int closing = stop - at > 1 && at[1] == '/';
        const uint8_t *name = at + 1 + closing, *end = name;
        if (name >= stop || !is_letter(*name)) { /* a comment, a declaration, or no tag */
            seal(&open, found);
            at++;
            continue;
        }
        while (end < stop && is_letter(*end)) end++;
        size_t length = (size_t)(end - name);
        while (end < stop && !is_space(*end) && *end != '/' && *end != '>') end++;
        int kind = (size_t)(end - name) == length ? kind_of(name, length) : OTHER; /* `<h1` and `<b:x` are others */
        if (length == 4 && !closing && among(name, 4, (const char *const[]){"math"}, 1) == 0) found->mathematics = 1;
        const uint8_t *nested, *behind = attributes(end, stop, most_attributes, found, &nested);
        if (closing && kind >= 0) {
            if (open.count && open.kinds[open.count - 1] == kind) open.count--;
            else seal(&open, found);
        } else if (kind >= 0) {
            if (open.count == DEPTH) seal(&open, found);
            open.kinds[open.count++] = kind;
        } else if (kind == OTHER) {
            seal(&open, found);
        }
        if (nested || behind == stop) seal(&open, found); /* what is hidden in it closes nothing before it */
        at = nested ? nested : behind;
    }
    seal(&open, found);
}
