/* Products with the rows of a plain matrix that belong to a head: between heads and the latent space. A piece of the
 * matrix is packed into a panel where it is used: that costs little beside reading it. */
#include <omp.h>

#include "device/cpu/cpu.h"

enum { ROWS_AT_ONCE = 96 };

/* One call: which product, its operands, and how its work is cut: a task is one panel of outputs of one group. */
typedef struct job {
  const float *x;
  float *y;
  int64_t m, x_stride, y_stride; /* strides between heads */
  int heads, groups;             /* heads of a group */
  const kf_weight *w;
  const kf_head_rows *rows;
  const float *bias;
  bool transposed;
} job;

static int64_t inner_of(const job *j, int g) {
  return j->transposed ? j->rows[g].count : j->w->k;
}
static int64_t outputs_of(const job *j, int g) {
  return j->transposed ? j->w->k : j->rows[g].count;
}
static const void *row_of(const job *j, int64_t row) {
  return (const char *)j->w->data + (size_t)(row * j->w->k) * kf_element(j->w->type);
}

/* Pointers to rows first .. first + n of the group; beyond them the last one again. */
static void pack_panel(const kf_cpu *c, const job *j, int g, int64_t output, const void **pointers, void *panel) {
  const kf_head_rows *r = &j->rows[g];
  int64_t first = r->first + (j->transposed ? 0 : output), n = j->transposed ? r->count : KF_PANEL;
  for (int64_t i = 0; i < n; i++) pointers[i] = row_of(j, kf_least(first + i, r->first + r->count - 1));
  kf_slice slice = {pointers, j->w->type, 0, j->w->k};
  if (!j->transposed) {
    c->tile->pack_keys(panel, &slice);
    return;
  }
  slice.column = output;
  slice.n = kf_least(KF_PANEL, j->w->k - output);
  c->tile->pack_values(panel, &slice, (int)n);
}

/* Rows i .. i + n of the group (token-major) times the packed panel. */
static void multiply_rows(const kf_cpu *c, const job *j, int g, int64_t output, int64_t i, int64_t n, const void *panel, char *x,
                          float *sums) {
  int64_t inner = inner_of(j, g), padded = kf_round_up(inner, 2), all = (int64_t)j->heads * j->groups;
  int64_t outputs = kf_least(KF_PANEL, outputs_of(j, g) - output);
  for (int64_t r = 0; r < n; r++) {
    int64_t head = (i + r) / j->heads * all + (int64_t)g * j->heads + (i + r) % j->heads;
    c->tile->convert(x + (size_t)(r * padded) * kf_element(c->tile->type), j->x + head * j->x_stride, inner, padded);
  }
  c->tile->multiply(sums, KF_PANEL, x, padded, panel, inner, n, (int)outputs, NULL, NULL);
  for (int64_t r = 0; r < n; r++) {
    int64_t head = (i + r) / j->heads * all + (int64_t)g * j->heads + (i + r) % j->heads;
    float *to = j->y + head * j->y_stride + output;
    const float *b = j->bias ? j->bias + j->rows[g].first + output : NULL;
    for (int64_t o = 0; o < outputs; o++) to[o] = sums[r * KF_PANEL + o] + (b ? b[o] : 0);
  }
}

static void run_job(kf_cpu *c, const job *j) {
  int64_t inner = 0, panels = 0;
  for (int g = 0; g < j->groups; g++) {
    inner = kf_most(inner, kf_round_up(inner_of(j, g), 2));
    panels = kf_most(panels, (outputs_of(j, g) + KF_PANEL - 1) / KF_PANEL);
  }
  size_t element = kf_element(c->tile->type);
  size_t pointer_bytes = (size_t)kf_round_up((int64_t)sizeof(void *) * kf_most(inner, KF_PANEL), 64);
  size_t panel_bytes = (size_t)(inner * KF_PANEL) * element, sum_bytes = ROWS_AT_ONCE * KF_PANEL * sizeof(float);
  size_t bytes = pointer_bytes + panel_bytes + sum_bytes + (size_t)kf_round_up(ROWS_AT_ONCE * inner * (int64_t)element, 64);
  char *memory = kf_scratch(c, KF_SCRATCH_THREADS, bytes * (size_t)c->device.threads);
  if (!memory) return;
  int64_t rows = j->m * j->heads, tasks = panels * j->groups;
#pragma omp parallel for schedule(static) num_threads(kf_threads_for(c, (double)(rows * tasks * inner)))
  for (int64_t t = 0; t < tasks; t++) {
    char *mine = memory + bytes * (size_t)omp_get_thread_num(), *panel = mine + pointer_bytes;
    int g = (int)(t / panels);
    int64_t output = t % panels * KF_PANEL;
    if (output >= outputs_of(j, g)) continue;
    pack_panel(c, j, g, output, (const void **)mine, panel);
    for (int64_t i = 0; i < rows; i += ROWS_AT_ONCE)
      multiply_rows(c, j, g, output, i, kf_least(ROWS_AT_ONCE, rows - i), panel, panel + panel_bytes + sum_bytes,
                    (float *)(panel + panel_bytes));
  }
}

static void head_transposed(kf_device *d, float *y, const float *x, int64_t m, int heads, int x_stride, const kf_weight *w,
                            const kf_head_rows *rows, int kv_heads) {
  job j = {.x = x,
           .y = y,
           .m = m,
           .x_stride = x_stride,
           .y_stride = w->k,
           .heads = heads / kv_heads,
           .groups = kv_heads,
           .w = w,
           .rows = rows,
           .transposed = true};
  run_job(kf_cpu_of(d), &j);
}

static void head_times(kf_device *d, float *y, int y_stride, const float *x, int64_t m, int heads, const kf_weight *w,
                       const kf_head_rows *rows, int kv_heads, const float *bias) {
  job j = {.x = x,
           .y = y,
           .m = m,
           .x_stride = w->k,
           .y_stride = y_stride,
           .heads = heads / kv_heads,
           .groups = kv_heads,
           .w = w,
           .rows = rows,
           .bias = bias};
  run_job(kf_cpu_of(d), &j);
}

void kf_cpu_heads_table(kf_device *d) {
  d->head_transposed = head_transposed;
  d->head_times = head_times;
}
