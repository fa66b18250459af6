/* Speed of the device's operations, each beside what bounds it: oneDNN's own product for linear with many rows, the
 * machine's read bandwidth for everything that streams weights or caches, the product's rate for attention over a prompt.
 *   bench_device [f32|auto] [threads] [linear|attention|rest|reference]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "device/cpu/cpu.h"
#include "device/reference.h"

static kf_device *device;

/* With one thread, seconds of the processor: what else runs on the machine then counts for less. */
static double now(void) {
  struct timespec t;
  clock_gettime(device->threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void stop(const char *why) {
  fprintf(stderr, "bench_device: %s\n", why);
  exit(1);
}

static float *numbers(int64_t n) {
  float *x = malloc((size_t)n * sizeof *x);
  if (!x) stop("out of memory");
  uint32_t s = 1;
  for (int64_t i = 0; i < n; i++) {
    s = s * 1664525u + 1013904223u;
    x[i] = (float)(s >> 8) / 8388608.0f - 1;
  }
  return x;
}

typedef void work(void *what);

/* Best seconds of a run, over `rounds` rounds of about 50 ms. */
static double best_of(work *f, void *what, int rounds) {
  double t = now(), best = 1e30;
  f(what);
  int repeat = (int)(0.05 / (now() - t + 1e-9)) + 1;
  for (int i = 0; i < rounds; i++) {
    t = now();
    for (int j = 0; j < repeat; j++) f(what);
    t = (now() - t) / repeat;
    if (t < best) best = t;
  }
  return best;
}

/* ------------------------------------------------------------------------------------------------ bandwidth */

typedef struct memory {
  const float *data;
  int64_t n;
} memory;

enum { PIECE = 16384 };

static void read_memory(void *what) {
  const memory *m = what;
  double sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) num_threads(device->threads)
  for (int64_t i = 0; i < m->n; i += PIECE) sum += (double)kf_cpu_of(device)->vector->sum_squares(m->data + i, PIECE);
  if (sum < 0) stop("a sum of squares is negative");
}

static double read_bandwidth(void) {
  memory m = {.n = 128 << 20};
  float *data = kf_alloc((size_t)m.n, sizeof *data, NULL);
  if (!data) stop("out of memory");
  for (int64_t i = 0; i < m.n; i++) data[i] = 1;
  m.data = data;
  double t = best_of(read_memory, &m, 8);
  free(data);
  return (double)m.n * 4 / t;
}

/* ------------------------------------------------------------------------------------------------ linear */

typedef struct product {
  float *x, *y;
  void *converted;
  kf_weight **weights;
  int count;
  int64_t m;
} product;

static void ours(void *what) {
  product *p = what;
  for (int i = 0; i < p->count; i++) device->linear(device, p->y, p->x, p->weights[i], p->m, false);
}

static void theirs(void *what) {
  product *p = what;
  const kf_weight *w = p->weights[0];
  kf_onednn_shape shape = {p->m, w->n, w->k, w->type, w->panels, false, false};
  kf_onednn_linear(kf_cpu_of(device)->onednn, &shape, p->y, p->converted, w->data, NULL, &device->error);
}

static kf_weight *make_weight(int64_t n, int64_t k) {
  float *w = numbers(n * k);
  kf_weight *out = NULL;
  kf_error e;
  if (device->pack(device, w, NULL, n, k, &out, &e) != KF_OK) stop(e.message);
  free(w);
  return out;
}

static void linear_many(int64_t m, int64_t n, int64_t k) {
  kf_weight *w = make_weight(n, k);
  product p = {numbers(m * k), numbers(m * n), numbers(m * k), &w, 1, m};
  kf_cpu_of(device)->tile->convert(p.converted, p.x, m * k, m * k);
  double mine = 1e30, other = 1e30;
  for (int i = 0; i < 6; i++) { /* in turns, so that a noisy moment hits both */
    double a = best_of(ours, &p, 1), b = best_of(theirs, &p, 1);
    if (a < mine) mine = a;
    if (b < other) other = b;
  }
  double flops = 2e-9 * (double)(m * n * k);
  printf("linear    m=%-5lld n=%-6lld k=%-5lld %7.1f GFLOP/s   oneDNN %7.1f   %5.1f%%\n", (long long)m, (long long)n,
         (long long)k, flops / mine, flops / other, 100 * other / mine);
  device->weight_free(device, w);
  free(p.x), free(p.y), free(p.converted);
}

static void linear_few(int64_t m, int64_t n, int64_t k, double bandwidth) {
  int count = (int)(400e6 / (double)(n * k * 2)) + 1;
  product p = {numbers(m * k), numbers(m * n), NULL, calloc((size_t)count, sizeof(kf_weight *)), count, m};
  if (!p.weights) stop("out of memory");
  for (int i = 0; i < count; i++) p.weights[i] = make_weight(n, k);
  double bytes = (double)count * (double)device->weight_bytes(p.weights[0]), t = best_of(ours, &p, 10);
  printf("linear    m=%-5lld n=%-6lld k=%-5lld %7.1f GB/s of weights, %5.1f%% of the read bandwidth\n", (long long)m,
         (long long)n, (long long)k, 1e-9 * bytes / t, 100 * bytes / t / bandwidth);
  for (int i = 0; i < count; i++) device->weight_free(device, p.weights[i]);
  free(p.x), free(p.y), free(p.weights);
}

/* ------------------------------------------------------------------------------------------------ attention */

/* As many caches as layers, so that they do not stay in the processor's cache. */
typedef struct context {
  kf_attention_shape shape;
  kf_latent_shape latent;
  kf_attention a;
  kf_latent_attention l;
  kf_rows *layers;
  int count;
} context;

static kf_rows make_rows(int64_t tokens, int64_t columns) {
  int64_t count = (tokens + 63) / 64;
  void **pages = calloc((size_t)count, sizeof *pages);
  if (!pages) stop("out of memory");
  for (int64_t p = 0; p < count; p++) {
    float *x = numbers(64 * columns);
    pages[p] = kf_alloc((size_t)(64 * columns), kf_element(device->compute), NULL);
    if (!pages[p]) stop("out of memory");
    kf_cpu_of(device)->tile->convert(pages[p], x, 64 * columns, 64 * columns);
    free(x);
  }
  return (kf_rows){pages, 64, columns, device->compute};
}

static void free_rows(kf_rows *rows, int64_t tokens) {
  for (int64_t p = 0; p < (tokens + 63) / 64; p++) free(rows->pages[p]);
  free((void *)(uintptr_t)rows->pages);
}

static void grouped(void *what) {
  context *c = what;
  for (int i = 0; i < c->count; i++) {
    c->a.rows = c->layers[i];
    device->attention(device, &c->shape, &c->a, 1);
  }
}
static void absorbed(void *what) {
  context *c = what;
  for (int i = 0; i < c->count; i++) {
    c->l.rows = c->layers[i];
    device->latent_attention(device, &c->latent, &c->l, 1);
  }
}

static double timed(context *c, work *f, int64_t tokens, int64_t columns, int layers) {
  c->count = layers;
  c->layers = calloc((size_t)layers, sizeof *c->layers);
  if (!c->layers) stop("out of memory");
  for (int i = 0; i < layers; i++) c->layers[i] = make_rows(tokens, columns);
  double t = best_of(f, c, 8) / layers;
  for (int i = 0; i < layers; i++) free_rows(&c->layers[i], tokens);
  free(c->layers);
  return t;
}

static void attention(int64_t m, int64_t past, int heads, int kv_heads, int d, double bandwidth) {
  int64_t tokens = m + past, columns = 2 * (int64_t)kv_heads * d;
  context c = {
      .shape = {heads, kv_heads, d, d, 0.125f, 0},
      .a = {.q = numbers(m * heads * d), .q_stride = (int64_t)heads * d, .out = numbers(m * heads * d), .m = m, .past = past}};
  double t = timed(&c, grouped, tokens, columns, m > 16 ? 1 : 30);
  double pairs = (double)m * (double)past + (double)m * (double)(m + 1) / 2;
  double bytes = (double)(tokens * columns) * (double)kf_element(device->compute);
  printf("attention m=%-5lld past=%-6lld heads=%d/%d d=%d: %8.1f us  %7.1f GFLOP/s  %6.1f GB/s of rows (%5.1f%%)\n", (long long)m,
         (long long)past, heads, kv_heads, d, 1e6 * t, 4e-9 * pairs * heads * d / t, 1e-9 * bytes / t,
         100 * bytes / t / bandwidth);
  free((void *)(uintptr_t)c.a.q), free(c.a.out);
}

static void latent(int64_t m, int64_t past, int heads, int rank, int rope, double bandwidth) {
  int64_t tokens = m + past, columns = rank + rope;
  int offset = rank, width = rope;
  context c = {.latent = {heads, 1, rank, rope, &offset, &width, -1, 0.1f, 0},
               .l = {.q_latent = numbers(m * heads * rank),
                     .q_rope = numbers(m * heads * rope),
                     .out = numbers(m * heads * rank),
                     .m = m,
                     .past = past}};
  double t = timed(&c, absorbed, tokens, columns, m > 16 ? 1 : 30);
  double pairs = (double)m * (double)past + (double)m * (double)(m + 1) / 2;
  double bytes = (double)(tokens * columns) * (double)kf_element(device->compute);
  printf("latent    m=%-5lld past=%-6lld heads=%d rank=%d+%d: %8.1f us  %7.1f GFLOP/s  %6.1f GB/s of rows (%5.1f%%)\n",
         (long long)m, (long long)past, heads, rank, rope, 1e6 * t, 2e-9 * pairs * heads * (2 * rank + rope) / t,
         1e-9 * bytes / t, 100 * bytes / t / bandwidth);
  free((void *)(uintptr_t)c.l.q_latent), free((void *)(uintptr_t)c.l.q_rope), free(c.l.out);
}

/* ------------------------------------------------------------------------------------------------ the rest */

enum { ROWS = 2048, HIDDEN = 576, INNER = 1536, VOCABULARY = 49152 };
typedef struct buffers {
  float *a, *b, *w;
  int64_t m;
  kf_weight *up, *down; /* [2 INNER, HIDDEN], [HIDDEN, INNER] */
  int32_t ids[ROWS], best[ROWS];
  double nll[ROWS];
} buffers;

static void norm(void *p) {
  buffers *b = p;
  device->rmsnorm(device, b->b, b->a, b->w, b->m, HIDDEN, 1e-5f);
}
static void norm_linear(void *p) {
  buffers *b = p;
  device->norm_linear(device, b->b, b->a, b->w, 1e-5f, b->up, b->m);
}
static void gate(void *p) {
  buffers *b = p;
  device->swiglu_linear(device, b->b, b->a, b->down, b->m);
}
static void turn(void *p) {
  buffers *b = p;
  static const kf_rope_block blocks[12] = {{0, 32, NULL},   {64, 32, NULL},  {128, 32, NULL}, {192, 32, NULL},
                                           {256, 32, NULL}, {320, 32, NULL}, {384, 32, NULL}, {448, 32, NULL},
                                           {512, 32, NULL}, {576, 32, NULL}, {640, 32, NULL}, {704, 32, NULL}};
  device->rope(device, b->a, b->m, 960, blocks, 12, b->w, b->w, 32, b->ids);
}
static void loss(void *p) {
  buffers *b = p;
  device->cross_entropy(device, b->a, b->ids, b->m, VOCABULARY, b->nll, b->best);
}

static void rows_of(const char *name, work *f, int64_t m, double bytes_per_row) {
  buffers b = {.a = numbers((int64_t)ROWS * 2 * INNER + 64 * VOCABULARY),
               .b = numbers(ROWS * 2 * INNER),
               .w = numbers(ROWS * 64),
               .m = m,
               .up = make_weight(2 * INNER, HIDDEN),
               .down = make_weight(HIDDEN, INNER)};
  double t = best_of(f, &b, 8);
  printf("%-13s m=%-5lld %8.2f us  %6.1f GB/s\n", name, (long long)m, 1e6 * t, 1e-9 * bytes_per_row * (double)m / t);
  device->weight_free(device, b.up), device->weight_free(device, b.down);
  free(b.a), free(b.b), free(b.w);
}

/* ------------------------------------------------------------------------------------------------ references */

/* One small case of each kind, fast and plain. */
typedef struct sample {
  product p;
  float *w;
  context c;
  buffers b;
} sample;

static void plain_linear(void *what) {
  sample *s = what;
  kf_reference_linear(s->p.y, s->p.x, s->w, NULL, s->p.m, HIDDEN, HIDDEN, false);
}
static void fast_linear(void *what) {
  ours(&((sample *)what)->p);
}
static void plain_attention(void *what) {
  sample *s = what;
  kf_reference_attention(&s->c.shape, &s->c.a, 1, NULL);
}
static void fast_attention(void *what) {
  sample *s = what;
  device->attention(device, &s->c.shape, &s->c.a, 1);
}
static void plain_latent(void *what) {
  sample *s = what;
  kf_reference_latent_attention(&s->c.latent, &s->c.l, 1, NULL);
}
static void fast_latent(void *what) {
  sample *s = what;
  device->latent_attention(device, &s->c.latent, &s->c.l, 1);
}
static void plain_norm(void *what) {
  buffers *b = &((sample *)what)->b;
  kf_reference_rmsnorm(b->b, b->a, b->w, b->m, HIDDEN, 1e-5f);
}
static void fast_norm(void *what) {
  norm(&((sample *)what)->b);
}
static void plain_gate(void *what) {
  buffers *b = &((sample *)what)->b;
  kf_reference_swiglu_linear(b->b, b->a, ((sample *)what)->w, NULL, b->m, HIDDEN, INNER, NULL);
}
static void fast_gate(void *what) {
  gate(&((sample *)what)->b);
}
static void plain_loss(void *what) {
  buffers *b = &((sample *)what)->b;
  kf_reference_cross_entropy(b->a, b->ids, b->m, VOCABULARY, b->nll, b->best);
}
static void fast_loss(void *what) {
  loss(&((sample *)what)->b);
}

static void all_references(void) {
  static const struct {
    const char *name;
    work *fast, *plain;
  } pairs[] = {{"linear", fast_linear, plain_linear},           {"attention", fast_attention, plain_attention},
               {"latent_attention", fast_latent, plain_latent}, {"rmsnorm", fast_norm, plain_norm},
               {"swiglu_linear", fast_gate, plain_gate},        {"cross_entropy", fast_loss, plain_loss}};
  enum { TOKENS = 32, PAST = 224, HEADS = 9, WIDTH = 64, RANK = 160 };
  int offset = RANK, width = 32;
  kf_weight *packed = make_weight(HIDDEN, HIDDEN);
  kf_rows rows = make_rows(TOKENS + PAST, 6 * WIDTH);
  float *x = numbers(TOKENS * HEADS * RANK), *y = numbers(TOKENS * 2 * INNER);
  sample s = {.p = {x, y, NULL, &packed, 1, TOKENS}, .w = numbers(HIDDEN * INNER)};
  s.c.shape = (kf_attention_shape){HEADS, 3, WIDTH, WIDTH, 0.125f, 0};
  s.c.a = (kf_attention){x, HEADS * WIDTH, y, rows, TOKENS, PAST};
  s.c.latent = (kf_latent_shape){HEADS, 1, RANK, width, &offset, &width, -1, 0.1f, 0};
  s.c.l = (kf_latent_attention){x, x, y, rows, TOKENS, PAST};
  s.b = (buffers){
      .a = numbers((int64_t)TOKENS * VOCABULARY), .b = y, .w = numbers(HIDDEN), .m = TOKENS, .down = make_weight(HIDDEN, INNER)};
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    double fast = best_of(pairs[i].fast, &s, 4), plain = best_of(pairs[i].plain, &s, 2);
    printf("%-17s %10.1f us, reference %12.1f us: %.0f times\n", pairs[i].name, 1e6 * fast, 1e6 * plain, plain / fast);
  }
  device->weight_free(device, packed), device->weight_free(device, s.b.down);
  free_rows(&rows, TOKENS + PAST);
  free(x), free(y), free(s.w), free(s.b.a), free(s.b.w);
}

static void all_linear(double bandwidth) {
  static const int64_t shapes[][2] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}};
  static const int64_t many[] = {17, 32, 64, 128, 512, 2048}, few[] = {1, 2, 4, 8, 12, 16};
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 6; j++) linear_many(many[j], shapes[i][0], shapes[i][1]);
  }
  linear_many(512, 49152, 576);
  for (int j = 0; j < 6; j++) linear_few(few[j], 8192, 2048, bandwidth);
  linear_few(1, 2048, 8192, bandwidth);
  linear_few(1, 49152, 576, bandwidth);
  for (int i = 0; i < 4; i++) linear_few(1, shapes[i][0], shapes[i][1], bandwidth);
}

static void all_attention(double bandwidth) {
  attention(512, 0, 9, 3, 64, bandwidth);
  attention(2048, 0, 9, 3, 64, bandwidth);
  attention(2048, 0, 32, 8, 128, bandwidth);
  attention(1, 511, 9, 3, 64, bandwidth);
  attention(1, 2047, 9, 3, 64, bandwidth);
  attention(1, 8191, 9, 3, 64, bandwidth);
  attention(1, 8191, 32, 8, 64, bandwidth);
  attention(4, 8191, 9, 3, 64, bandwidth);
  latent(1, 2047, 9, 160, 32, bandwidth);
  latent(1, 8191, 9, 160, 32, bandwidth);
  latent(1, 8191, 32, 512, 64, bandwidth);
  latent(512, 0, 9, 160, 32, bandwidth);
}

static void all_rest(void) {
  rows_of("rmsnorm", norm, 1, 8.0 * HIDDEN);
  rows_of("rmsnorm", norm, ROWS, 8.0 * HIDDEN);
  rows_of("norm_linear", norm_linear, 1, 2.0 * INNER * HIDDEN * 2);
  rows_of("norm_linear", norm_linear, ROWS, 4.0 * (HIDDEN + 2 * INNER));
  rows_of("swiglu_linear", gate, 1, 2.0 * INNER * HIDDEN);
  rows_of("swiglu_linear", gate, ROWS, 4.0 * (2 * HIDDEN + 2 * INNER));
  rows_of("rope", turn, ROWS, 8.0 * 768);
  rows_of("cross_entropy", loss, 64, 4.0 * VOCABULARY);
}

int main(int argc, char **argv) {
  kf_error e;
  kf_compute compute = argc > 1 && strcmp(argv[1], "f32") == 0 ? KF_COMPUTE_F32 : KF_COMPUTE_AUTO;
  const char *part = argc > 3 ? argv[3] : "";
  if (kf_device_open_cpu(compute, argc > 2 ? atoi(argv[2]) : 0, &device, &e) != KF_OK) stop(e.message);
  double bandwidth = read_bandwidth();
  printf("%s %s, %d threads, read bandwidth %.1f GB/s\n", device->isa, device->compute == KF_BF16 ? "bf16" : "f32",
         device->threads, 1e-9 * bandwidth);
  if (!*part || strcmp(part, "linear") == 0) all_linear(bandwidth);
  if (!*part || strcmp(part, "attention") == 0) all_attention(bandwidth);
  if (!*part || strcmp(part, "rest") == 0) all_rest();
  if (!*part || strcmp(part, "reference") == 0) all_references();
  if (kf_device_check(device, &e) != KF_OK) stop(e.message);
  kf_device_close(device);
  return 0;
}
