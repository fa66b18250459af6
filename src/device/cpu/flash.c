#include "device/cpu/flash.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum {
  BLOCK_ROWS = 384,     /* query rows of a task: enough to pay for packing a tile of keys and values */
  TOGETHER_ROWS = 96,   /* up to so many rows, one task takes all groups, so that a cached row is read once */
  TASKS_PER_THREAD = 4, /* below this, keys are split too */
  LEAST_KEYS = 256,     /* of one part */
};

/* A block of query tokens of one sequence, for some groups, over some keys. */
typedef struct task {
  int sequence, group, groups;
  int64_t token, tokens; /* queries */
  int64_t key, key_end;  /* rows of the cache */
  int part, parts;       /* parts of the same block stand one after another */
  float *partial;        /* parts > 1: rows x (d_v sums, maximum, sum) */
} task;

/* One thread's memory. */
typedef struct work {
  char *q;                   /* [groups, rows, d_k] in the compute type */
  float *sums;               /* [groups, rows, wide]: unnormalised outputs */
  float *maximum;            /* [groups, rows] */
  float *total;              /* [groups, rows, KF_LANES] */
  char *keys, *values;       /* panels of one tile */
  float *factors;            /* [KV heads, KF_TILE] */
  float *scores;             /* [KF_FEW_ROWS, KF_TILE] */
  char *probabilities;       /* the same, in the compute type */
  int64_t inner, wide, rows; /* d_k and d_v padded; rows of one group */
  kf_ahead ahead;            /* rows of the next tile, where they are fetched while this one is worked on */
  bool few;                  /* at most KF_FEW_ROWS rows of a group in this task */
} work;

static int64_t key_bytes(const kf_cpu *c, const work *w) {
  return w->inner * KF_PANEL * (int64_t)kf_element(c->tile->type);
}
static int64_t value_bytes(const kf_cpu *c) {
  return (int64_t)KF_TILE * KF_PANEL * (int64_t)kf_element(c->tile->type);
}

/* Lays out (base NULL: only measures) a thread's memory for blocks of `rows` rows of each of `groups` groups. */
static size_t work_layout(const kf_cpu *c, const kf_flash *f, int64_t groups, int64_t rows, char *base, work *w) {
  size_t element = kf_element(c->tile->type);
  *w = (work){.inner = kf_round_up(f->d_k, 2), .wide = kf_round_up(f->d_v, KF_PANEL), .rows = rows};
  int factors = f->latent && f->latent->inverse_rms >= 0 ? f->latent->kv_heads : 0;
  size_t at = 0, all = (size_t)(groups * rows);
  struct {
    void *to;
    size_t bytes;
  } parts[] = {
      {&w->q, all * (size_t)w->inner * element},
      {&w->sums, all * (size_t)w->wide * sizeof(float)},
      {&w->maximum, all * sizeof(float)},
      {&w->total, all * KF_LANES * sizeof(float)},
      {&w->keys, (size_t)(KF_TILE / KF_PANEL * key_bytes(c, w))},
      {&w->values, (size_t)(w->wide / KF_PANEL * value_bytes(c))},
      {&w->factors, (size_t)factors * KF_TILE * sizeof(float)},
      {&w->scores, KF_FEW_ROWS * KF_TILE * sizeof(float)},
      {&w->probabilities, KF_FEW_ROWS * KF_TILE * element},
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    char *here = base ? base + at : NULL;
    memcpy(parts[i].to, &here, sizeof here);
    at += (size_t)kf_round_up((int64_t)parts[i].bytes, 64);
  }
  return at;
}

static int64_t first_visible(const kf_flash *f, int64_t position) {
  return f->window > 0 && position >= f->window ? position - f->window + 1 : 0;
}

/* ------------------------------------------------------------------------------------------------ queries */

/* The query of one head in the order of a row's columns: grouped attention has it so; a latent query gets its rope part at
 * the columns of its KV head, and zeros where other KV heads have theirs. */
static void load_query(const kf_cpu *c, const kf_flash *f, const kf_flash_sequence *s, int64_t token, int head, int64_t inner,
                       char *to) {
  int64_t at = token * f->groups * f->heads + head;
  if (!f->latent) {
    c->tile->convert(to, s->q + token * s->q_stride + head * f->d_k, f->d_k, inner);
    return;
  }
  const kf_latent_shape *l = f->latent;
  size_t element = kf_element(c->tile->type);
  int g = head / (l->heads / l->kv_heads);
  memset(to, 0, (size_t)inner * element);
  c->tile->convert(to, s->q + at * l->rank, l->rank, l->rank);
  c->tile->convert(to + (size_t)l->rope_offset[g] * element, s->q_rope + at * l->rope_stride, l->rope_width[g], l->rope_width[g]);
}

static void load_queries(const kf_cpu *c, const kf_flash *f, const task *t, work *w) {
  const kf_flash_sequence *s = &f->sequences[t->sequence];
  size_t element = kf_element(c->tile->type);
  for (int64_t r = 0; r < t->groups * w->rows; r++) {
    int64_t inside = r % w->rows;
    if (inside >= t->tokens * f->heads) continue;
    int head = (int)(t->group + r / w->rows) * f->heads + (int)(inside % f->heads);
    load_query(c, f, s, t->token + inside / f->heads, head, w->inner, w->q + (size_t)(r * w->inner) * element);
    w->maximum[r] = -INFINITY;
    memset(w->total + r * KF_LANES, 0, KF_LANES * sizeof(float));
    memset(w->sums + r * w->wide, 0, (size_t)w->wide * sizeof(float));
  }
}

/* ------------------------------------------------------------------------------------------------ one tile of keys */

typedef struct tile {
  const void *rows[KF_TILE]; /* beyond count: the last one again, whose probability is 0 */
  int64_t first;
  int count;
} tile;

static tile find_rows(const kf_rows *rows, int64_t first, int64_t end) {
  tile t = {.first = first, .count = (int)kf_least(KF_TILE, end - first)};
  int64_t page = first / rows->page_tokens, inside = first % rows->page_tokens;
  size_t bytes = (size_t)rows->columns * kf_element(rows->dtype);
  for (int i = 0; i < t.count; i++) {
    t.rows[i] = (const char *)rows->pages[page] + (size_t)inside * bytes;
    if (++inside < rows->page_tokens) continue;
    inside = 0;
    page++;
  }
  for (int i = t.count; i < KF_TILE; i++) t.rows[i] = t.rows[t.count - 1];
  return t;
}

static int tile_panels(const tile *t) {
  return (t->count + KF_PANEL - 1) / KF_PANEL;
}

static kf_slice values_of(const kf_flash *f, const tile *t, kf_dtype type, int group, int64_t first, int64_t n) {
  return (kf_slice){t->rows, type, f->value_column + group * f->d_v + first, n};
}

/* With few query rows values are used where they stand. */
static void pack_tile(const kf_cpu *c, const kf_flash *f, const tile *t, kf_dtype type, int group, work *w) {
  for (int p = 0; p < tile_panels(t); p++) {
    kf_slice s = {t->rows + p * KF_PANEL, type, group * f->d_k, f->d_k};
    c->tile->pack_keys(w->keys + p * key_bytes(c, w), &s);
  }
  for (int64_t v = 0; v < f->d_v && !w->few; v += KF_PANEL) {
    kf_slice s = values_of(f, t, type, group, v, kf_least(KF_PANEL, f->d_v - v));
    c->tile->pack_values(w->values + v / KF_PANEL * value_bytes(c), &s, tile_panels(t) * KF_PANEL);
  }
}

static void touch_rows(const kf_rows *rows, const tile *k) {
  int64_t bytes = rows->columns * (int64_t)kf_element(rows->dtype);
  for (int i = 0; i < k->count; i++) {
    for (int64_t b = 0; b < bytes; b += 64) (void)((const volatile char *)k->rows[i])[b];
  }
}

/* Brings rows towards the processor before packing reads them by columns, which its own prediction does not follow.
 * Latent attention computes longer on a row than memory needs to deliver one: there the next rows are fetched a line at a
 * time meanwhile. Elsewhere memory is what one waits for: reading the rows once in their order is the fastest. */
static void bring_rows(const kf_flash *f, const task *t, const kf_rows *rows, const tile *k, work *w) {
  size_t bytes = (size_t)rows->columns * kf_element(rows->dtype);
  int64_t next = k->first + k->count;
  w->ahead = (kf_ahead){0};
  if (t->groups < f->groups) return;
  if (f->latent && next < t->key_end) {
    int64_t count = kf_least(kf_least(k->count, t->key_end - next), rows->page_tokens - next % rows->page_tokens);
    const char *from = kf_row(rows, next);
    w->ahead = (kf_ahead){from, from + (size_t)count * bytes};
  }
  if (f->latent && k->first > t->key) return;
  touch_rows(rows, k);
}

static void load_factors(const kf_flash *f, const tile *t, kf_dtype from, work *w) {
  if (!f->latent || f->latent->inverse_rms < 0) return;
  for (int g = 0; g < f->latent->kv_heads; g++) {
    int column = f->latent->inverse_rms + g;
    for (int i = 0; i < KF_TILE; i++)
      w->factors[g * KF_TILE + i] =
          from == KF_BF16 ? kf_bf16_to_f32(((const uint16_t *)t->rows[i])[column]) : ((const float *)t->rows[i])[column];
  }
}

static const float *factors_of(const kf_flash *f, const work *w, int head) {
  if (!f->latent || f->latent->inverse_rms < 0) return NULL;
  return w->factors + head / (f->latent->heads / f->latent->kv_heads) * KF_TILE;
}

/* Probabilities of n rows from r on, and what their earlier sums are multiplied by. */
static void soften_rows(const kf_cpu *c, const kf_flash *f, const task *t, const tile *k, int count, int group, int64_t r, int n,
                        work *w, float *alpha) {
  int64_t past = f->sequences[t->sequence].past + t->token, base = (group - t->group) * w->rows + r;
  size_t row = KF_TILE * kf_element(c->tile->type);
  for (int i = 0; i < n; i++) {
    int64_t position = past + (r + i) / f->heads;
    int low = (int)kf_most(0, kf_least(count, first_visible(f, position) - k->first));
    int high = (int)kf_most(0, kf_least(k->count, position + 1 - k->first));
    char *p = w->probabilities + (size_t)i * row;
    const float *factors = factors_of(f, w, group * f->heads + (int)((r + i) % f->heads));
    alpha[i] = 1;
    if (low < high)
      alpha[i] = c->tile->softmax(w->scores + i * KF_TILE, count, low, high, factors, f->scale * 1.44269504f,
                                  &w->maximum[base + i], w->total + (base + i) * KF_LANES, p);
    else
      memset(p, 0, row);
  }
}

/* Rows r .. r + n of a group (n <= KF_FEW_ROWS) against the packed tile. */
static void attend_rows(const kf_cpu *c, const kf_flash *f, const task *t, const tile *k, int group, int64_t r, int n, work *w) {
  int64_t past = f->sequences[t->sequence].past + t->token, base = (group - t->group) * w->rows + r;
  int64_t last = past + (r + n - 1) / f->heads;
  if (k->first > last || k->first + k->count <= first_visible(f, past + r / f->heads)) return;
  int seen = (int)kf_least(k->count, last + 1 - k->first), count = (int)kf_round_up(seen, KF_SOFTMAX_KEYS);
  const char *q = w->q + (size_t)(base * w->inner) * kf_element(c->tile->type);
  for (int p = 0; p * KF_PANEL < count; p++)
    c->tile->multiply(w->scores + p * KF_PANEL, KF_TILE, q, w->inner, w->keys + p * key_bytes(c, w), f->d_k, n,
                      (int)kf_least(KF_PANEL, count - p * KF_PANEL), NULL, &w->ahead);
  float alpha[KF_FEW_ROWS], *sums = w->sums + base * w->wide;
  soften_rows(c, f, t, k, count, group, r, n, w, alpha);
  if (w->few) {
    kf_slice s = values_of(f, k, f->sequences[t->sequence].rows.dtype, group, 0, f->d_v);
    c->tile->weigh(sums, w->wide, w->probabilities, KF_TILE, &s, (int)kf_round_up(seen, 2), n, alpha, &w->ahead);
    return;
  }
  for (int64_t v = 0; v < f->d_v; v += KF_PANEL)
    c->tile->multiply(sums + v, w->wide, w->probabilities, KF_TILE, w->values + v / KF_PANEL * value_bytes(c), seen, n,
                      (int)kf_least(KF_PANEL, f->d_v - v), alpha, NULL);
}

/* ------------------------------------------------------------------------------------------------ one task */

static void write_row(const kf_flash *f, const task *t, int group, int64_t r, const float *sums, float total) {
  int64_t at = (t->token + r / f->heads) * f->groups * f->heads + group * f->heads + r % f->heads;
  float *out = f->sequences[t->sequence].out + at * f->d_v, inverse = 1 / total;
  for (int64_t j = 0; j < f->d_v; j++) out[j] = sums[j] * inverse;
}

static float add_lanes(const float *total) {
  float sum = 0;
  for (int i = 0; i < KF_LANES; i++) sum += total[i];
  return sum;
}

static void finish_task(const kf_flash *f, const task *t, const work *w) {
  int64_t rows = t->tokens * f->heads;
  for (int g = 0; g < t->groups; g++) {
    for (int64_t r = 0; r < rows; r++) {
      int64_t from = g * w->rows + r;
      float total = add_lanes(w->total + from * KF_LANES);
      if (t->parts == 1) {
        write_row(f, t, t->group + g, r, w->sums + from * w->wide, total);
        continue;
      }
      float *to = t->partial + (g * rows + r) * (f->d_v + 2);
      memcpy(to, w->sums + from * w->wide, (size_t)f->d_v * sizeof *to);
      to[f->d_v] = w->maximum[from];
      to[f->d_v + 1] = total;
    }
  }
}

static void run_task(const kf_cpu *c, const kf_flash *f, const task *t, work *w) {
  const kf_rows *rows = &f->sequences[t->sequence].rows;
  int64_t all = t->tokens * f->heads;
  w->few = all <= KF_FEW_ROWS;
  int64_t step = w->few ? KF_PANEL : KF_TILE; /* few rows: all that is read in a step stays in the L1 cache */
  int64_t together = w->few ? KF_FEW_ROWS : KF_ROW_GROUP;
  load_queries(c, f, t, w);
  for (int64_t key = t->key; key < t->key_end; key += step) {
    tile k = find_rows(rows, key, kf_least(t->key_end, key + step));
    bring_rows(f, t, rows, &k, w);
    load_factors(f, &k, rows->dtype, w);
    for (int g = t->group; g < t->group + t->groups; g++) {
      pack_tile(c, f, &k, rows->dtype, g, w);
      for (int64_t r = 0; r < all; r += together) attend_rows(c, f, t, &k, g, r, (int)kf_least(together, all - r), w);
    }
  }
  finish_task(f, t, w);
}

/* Adds up the parts of a block: first points to part 0. */
static void merge_parts(const kf_flash *f, const task *first) {
  int64_t rows = first->tokens * f->heads, width = f->d_v + 2;
  for (int64_t r = 0; r < first->groups * rows; r++) {
    float most = -INFINITY, total = 0, *sums = first->partial + r * width;
    for (int p = 0; p < first->parts; p++) most = fmaxf(most, first[p].partial[r * width + f->d_v]);
    for (int p = 0; p < first->parts; p++) {
      const float *from = first[p].partial + r * width;
      float factor = exp2f(from[f->d_v] - most);
      total += factor * from[f->d_v + 1];
      for (int64_t j = 0; j < f->d_v; j++) sums[j] = (p ? sums[j] : 0) + factor * from[j];
    }
    write_row(f, first, first->group + (int)(r / rows), r % rows, sums, total);
  }
}

/* ------------------------------------------------------------------------------------------------ the plan */

typedef struct plan {
  int64_t block;  /* tokens of a block */
  int together;   /* groups of a task */
  int64_t blocks; /* of all sequences and groups */
  int parts;      /* at most, of a block */
  int64_t rows;   /* most rows of one group in a task */
} plan;

static plan make_plan(const kf_cpu *c, const kf_flash *f) {
  int64_t longest = 0;
  for (int i = 0; i < f->count; i++) longest = kf_most(longest, f->sequences[i].m);
  plan p = {.block = kf_most(1, BLOCK_ROWS / f->heads), .together = 1};
  if (longest == 0) return p;
  if (longest * f->heads * f->groups <= TOGETHER_ROWS) p.together = f->groups;
  p.block = kf_least(p.block, longest);
  for (int i = 0; i < f->count; i++) p.blocks += (f->sequences[i].m + p.block - 1) / p.block * (f->groups / p.together);
  int64_t threads = c->device.threads, wanted = p.blocks == 1 ? threads : threads * TASKS_PER_THREAD;
  p.parts = threads == 1 || p.blocks == 0 ? 1 : (int)((wanted + p.blocks - 1) / p.blocks);
  p.rows = p.block * f->heads;
  return p;
}

/* The parts of one block, longest reach first in memory order. Returns how many. */
static int add_block(const kf_flash *f, const plan *p, int sequence, int group, int64_t token, task *to, float **partial) {
  const kf_flash_sequence *s = &f->sequences[sequence];
  int64_t tokens = kf_least(p->block, s->m - token), start = first_visible(f, s->past + token), end = s->past + token + tokens;
  int64_t keys = end - start, parts = kf_most(1, kf_least(p->parts, keys / LEAST_KEYS));
  int64_t size = kf_round_up((keys + parts - 1) / parts, KF_PANEL);
  parts = (keys + size - 1) / size;
  for (int64_t i = 0; i < parts; i++) {
    to[i] = (task){sequence, group,      p->together, token, tokens, start + i * size, kf_least(end, start + (i + 1) * size),
                   (int)i,   (int)parts, *partial};
    if (parts > 1) *partial += p->together * tokens * f->heads * (f->d_v + 2);
  }
  return (int)parts;
}

/* Later tokens see more keys: they come first, so that threads end together. */
static int64_t add_tasks(const kf_flash *f, const plan *p, task *to, float *partial) {
  int64_t n = 0;
  for (int i = 0; i < f->count; i++) {
    int64_t blocks = (f->sequences[i].m + p->block - 1) / p->block;
    for (int64_t b = blocks - 1; b >= 0; b--) {
      for (int g = 0; g < f->groups; g += p->together) n += add_block(f, p, i, g, b * p->block, to + n, &partial);
    }
  }
  return n;
}

void kf_flash_run(kf_cpu *c, const kf_flash *f) {
  plan p = make_plan(c, f);
  if (p.blocks == 0) return;
  work w;
  size_t bytes = work_layout(c, f, p.together, p.rows, NULL, &w);
  char *memory = kf_scratch(c, KF_SCRATCH_THREADS, bytes * (size_t)c->device.threads);
  task *tasks = kf_scratch(c, KF_SCRATCH_TASKS, (size_t)(p.blocks * p.parts) * sizeof *tasks);
  int64_t partial_rows = p.parts > 1 ? p.blocks * p.parts * p.together * p.rows : 1;
  float *partial = kf_scratch(c, KF_SCRATCH_PARTS, (size_t)(partial_rows * (f->d_v + 2)) * sizeof *partial);
  if (!memory || !tasks || !partial) return;
  int64_t count = add_tasks(f, &p, tasks, partial);
#pragma omp parallel num_threads(count > 1 ? c->device.threads : 1)
  {
    work mine;
    work_layout(c, f, p.together, p.rows, memory + bytes * (size_t)omp_get_thread_num(), &mine);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) run_task(c, f, &tasks[i], &mine);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
      if (tasks[i].parts > 1 && tasks[i].part == 0) merge_parts(f, &tasks[i]);
    }
  }
}
