/* Flash attention over paged rows, grouped and latent (Dao et al. 2022, arXiv 2205.14135, algorithm 1, one tile of queries a
 * block). A tile of ROWS query rows meets the keys KEYS at a time: scores from chunks of columns in shared memory, the running
 * softmax in registers (a warp owns its rows), the weighted sums of values in `out` itself, so that any width of keys and
 * values fits, and memory does not grow with the context. */
#include "device/cuda/parts.h"

enum { ROWS = 16, KEYS = 64, CHUNK = 32, WARP = 32, THREADS = 128, OWN = ROWS / (THREADS / WARP), EACH = KEYS / WARP };

/* What the threads of a block share. */
typedef struct tile {
  float q[ROWS][CHUNK], k[KEYS][CHUNK + 1]; /* one column more: lanes then read different banks */
  float p[KEYS][ROWS];                      /* e^(score - most so far) */
  float kept[ROWS], total[ROWS];            /* factor on what was summed before; sum of probabilities */
  int64_t head[ROWS], position[ROWS];       /* of each row: token x all heads + head; position in its sequence */
  const float *query[ROWS];                 /* of each row, without its rope columns when latent */
  const void *row[KEYS];                    /* of the cache */
} tile;

static inline __device__ int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline __device__ int64_t first_visible(int64_t position, int64_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}
static inline __device__ float warp_most(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
static inline __device__ float warp_sum(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

static inline __device__ int kv_head_of(const kf_cuda_attention *a, int64_t head) {
  return (int)(head % ((int64_t)a->groups * a->heads)) / (a->heads / a->kv_heads);
}

/* Column of a row's query as its key has it. */
static inline __device__ float query(const tile *w, const kf_cuda_attention *a, const kf_cuda_sequence *s, int r,
                                     int64_t column) {
  if (column < a->q_columns) return w->query[r][column];
  int64_t head = w->head[r];
  int g = kv_head_of(a, head);
  int64_t j = column - a->rope_offset[g];
  return j >= 0 && j < a->rope_width[g] ? s->q_rope[head * a->rope_stride + j] : 0;
}

/* Adds this thread's scores: rows OWN x warp + i, keys lane + WARP x j. n: keys of the tile. */
static __device__ void add_scores(tile *w, const kf_cuda_attention *a, const kf_cuda_sequence *s, int g, int64_t rows, int n,
                                  float score[OWN][EACH]) {
  int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
  for (int64_t column = 0; column < a->d_k; column += CHUNK) {
    for (int i = (int)threadIdx.x; i < ROWS * CHUNK; i += THREADS) {
      int r = i / CHUNK, c = i % CHUNK;
      w->q[r][c] = r < rows && column + c < a->d_k ? query(w, a, s, r, column + c) : 0;
    }
    for (int i = (int)threadIdx.x; i < KEYS * CHUNK; i += THREADS) {
      int key = i / CHUNK, c = i % CHUNK;
      w->k[key][c] = key < n && column + c < a->d_k ? kf_cuda_get(w->row[key], s->rows.bf16, g * a->d_k + column + c) : 0;
    }
    __syncthreads();
    for (int c = 0; c < CHUNK; c++) {
      for (int j = 0; j < EACH; j++) {
        float k = w->k[lane + WARP * j][c];
        for (int i = 0; i < OWN; i++) score[i][j] += w->q[OWN * warp + i][c] * k;
      }
    }
    __syncthreads();
  }
}

/* Scores to probabilities for the keys at .. at + n; most and sum belong to this warp's rows. */
static __device__ void add_softmax(tile *w, const kf_cuda_attention *a, const kf_cuda_sequence *s, int64_t rows, int64_t at,
                                   int n, float score[OWN][EACH], float *most, float *sum) {
  int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
  for (int i = 0; i < OWN; i++) {
    int r = OWN * warp + i;
    float largest = most[i], part = 0;
    for (int j = 0; j < EACH; j++) {
      int key = lane + WARP * j;
      bool seen = r < rows && key < n && at + key <= w->position[r] && at + key >= first_visible(w->position[r], a->window);
      float factor = a->scale;
      if (seen && a->inverse_rms >= 0)
        factor *= kf_cuda_get(w->row[key], s->rows.bf16, a->inverse_rms + kv_head_of(a, w->head[r]));
      score[i][j] = seen ? score[i][j] * factor : -INFINITY;
      largest = fmaxf(largest, score[i][j]);
    }
    largest = warp_most(largest);
    bool any = largest > -INFINITY; /* else the row has not seen a key yet */
    for (int j = 0; j < EACH; j++) {
      float p = any ? expf(score[i][j] - largest) : 0;
      w->p[lane + WARP * j][r] = p;
      part += p;
    }
    float kept = any ? expf(most[i] - largest) : 1;
    sum[i] = sum[i] * kept + warp_sum(part);
    most[i] = largest;
    if (lane == 0) w->kept[r] = kept;
  }
}

/* out = out x kept + p V; a thread owns a column of every row. */
static __device__ void add_values(const tile *w, const kf_cuda_attention *a, const kf_cuda_sequence *s, int g, int64_t rows,
                                  int n, bool first) {
  for (int64_t c = threadIdx.x; c < a->d_v; c += THREADS) {
    float sum[ROWS];
    for (int r = 0; r < ROWS; r++) sum[r] = 0;
    for (int key = 0; key < n; key++) {
      float v = kf_cuda_get(w->row[key], s->rows.bf16, a->value_column + g * a->d_v + c);
      for (int r = 0; r < ROWS; r++) sum[r] += w->p[key][r] * v;
    }
    for (int r = 0; r < ROWS; r++) {
      float *out = s->out + w->head[r] * a->d_v + c;
      if (r < rows) *out = first ? sum[r] : *out * w->kept[r] + sum[r];
    }
  }
}

static __device__ void attend(tile *w, const kf_cuda_attention *a, const kf_cuda_sequence *s, int g, int64_t first_row) {
  int thread = (int)threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  int64_t rows = least(ROWS, s->m * a->heads - first_row), last = (first_row + rows - 1) / a->heads;
  int64_t begin = first_visible(s->past + first_row / a->heads, a->window), end = s->past + last + 1;
  float most[OWN], sum[OWN];
  for (int i = 0; i < OWN; i++) {
    most[i] = -INFINITY;
    sum[i] = 0;
  }
  if (thread < ROWS) { /* rows beyond the last are not used, but have an address */
    int64_t row = first_row + least(thread, rows - 1), t = row / a->heads, head = g * a->heads + row % a->heads;
    w->query[thread] = s->q + t * s->q_stride + head * a->q_columns;
    w->head[thread] = t * a->groups * a->heads + head;
    w->position[thread] = s->past + t;
  }
  for (int64_t at = begin; at < end; at += KEYS) {
    int n = (int)least(KEYS, end - at);
    float score[OWN][EACH];
    for (int i = 0; i < OWN * EACH; i++) score[i / EACH][i % EACH] = 0;
    if (thread < n) w->row[thread] = kf_cuda_row(&s->rows, at + thread);
    __syncthreads();
    add_scores(w, a, s, g, rows, n, score);
    add_softmax(w, a, s, rows, at, n, score, most, sum);
    __syncthreads();
    add_values(w, a, s, g, rows, n, at == begin);
    __syncthreads();
  }
  for (int i = 0; i < OWN; i++)
    if (lane == 0) w->total[OWN * warp + i] = sum[i];
  __syncthreads();
  for (int64_t c = threadIdx.x; c < a->d_v; c += THREADS)
    for (int r = 0; r < rows; r++) s->out[w->head[r] * a->d_v + c] /= w->total[r];
  __syncthreads();
}

KF_KERNEL(attention, kf_cuda_attention, a) {
  __shared__ tile work;
  KF_EACH_BLOCK(i, a.tiles * a.groups) {
    const kf_cuda_sequence *s = a.sequences;
    int64_t mine = i / a.groups;
    for (; mine >= s->tiles; s++) mine -= s->tiles;
    attend(&work, &a, s, (int)(i % a.groups), mine * ROWS);
  }
}

int64_t kf_cuda_tiles(int64_t rows) {
  return (rows + ROWS - 1) / ROWS;
}

cudaError_t kf_cuda_launch_attention(cudaStream_t stream, const kf_cuda_attention *job) {
  KF_LAUNCH(attention, kf_cuda_blocks(job->tiles * job->groups), THREADS, stream, *job);
  return cudaGetLastError();
}
