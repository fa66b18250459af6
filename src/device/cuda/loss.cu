/* Losses of rows of logits and their gradients, a block a row. Exponentials in f32, sums in fp64. */
#include "device/cuda/parts.h"

typedef struct peak {
  float value;
  int64_t at;
} peak;

/* The larger; of equals the first. */
static inline __device__ peak larger(peak a, peak b) {
  return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

KF_CUDA_REDUCTION(largest, peak, larger)

static __device__ peak most_of(const float *x, int64_t n) {
  peak p = {-INFINITY, 0};
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    peak here = {x[j], j};
    p = larger(p, here);
  }
  return largest(p);
}

static __device__ double sum_exp(const float *x, float most, int64_t n) {
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) sum += (double)expf(x[j] - most);
  return kf_cuda_sum(sum);
}

KF_KERNEL(cross_entropy, kf_cuda_loss, a) {
  KF_EACH_BLOCK(i, a.m) {
    const float *x = a.logits + i * a.v;
    peak most = most_of(x, a.v);
    double sum = sum_exp(x, most.value, a.v);
    if (threadIdx.x == 0) {
      a.best[i] = (int32_t)most.at;
      a.nll[i] = log(sum) + ((double)most.value - (double)x[a.target[i]]);
    }
  }
}

cudaError_t kf_cuda_launch_cross_entropy(cudaStream_t stream, const kf_cuda_loss *job) {
  KF_LAUNCH(cross_entropy, kf_cuda_blocks(job->m), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* KL = sum of p (r - x) - log Z_r + log Z_x, p = e^r / Z_r. */
KF_KERNEL(divergence, kf_cuda_loss, a) {
  KF_EACH_BLOCK(i, a.m) {
    const float *r = a.reference + i * a.v, *x = a.logits + i * a.v;
    float r_most = most_of(r, a.v).value, x_most = most_of(x, a.v).value;
    double r_sum = sum_exp(r, r_most, a.v), x_sum = sum_exp(x, x_most, a.v), mean = 0;
    peak gap = {0, 0};
    for (int64_t j = threadIdx.x; j < a.v; j += blockDim.x) {
      peak here = {fabsf(r[j] - x[j]), j};
      gap = larger(gap, here);
      mean += (double)expf(r[j] - r_most) * ((double)r[j] - (double)x[j]);
    }
    mean = kf_cuda_sum(mean) / r_sum;
    gap = largest(gap);
    if (threadIdx.x == 0) {
      a.kl[i] = mean - (log(r_sum) + (double)r_most) + (log(x_sum) + (double)x_most);
      a.difference[i] = (double)gap.value;
    }
  }
}

cudaError_t kf_cuda_launch_divergence(cudaStream_t stream, const kf_cuda_loss *job) {
  KF_LAUNCH(divergence, kf_cuda_blocks(job->m), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ training */

static __device__ double log_sum_exp(const float *x, float most, float factor, int64_t n) {
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) sum += (double)expf((x[j] - most) * factor);
  return log(kf_cuda_sum(sum)) + (double)most * (double)factor;
}

/* log((e^p + e^q) / 2) */
static inline __device__ double log_mean(double p, double q) {
  return fmax(p, q) + (double)log1pf(expf(-(float)fabs(p - q))) - 0.69314718055994530942;
}

/* A token's log-probabilities under the teacher, the student, and (Jensen-Shannon) the mean of both. */
typedef struct token {
  double p, q, mean;
} token;

typedef struct row {
  const float *x, *teacher;
  double p_lse, q_lse, factor;
  kf_divergence kind;
} row;

static inline __device__ token token_at(const row *r, int64_t j) {
  token t = {(double)r->teacher[j] * r->factor - r->p_lse, (double)r->x[j] * r->factor - r->q_lse, 0};
  if (r->kind == KF_JENSEN_SHANNON) t.mean = log_mean(t.p, t.q);
  return t;
}

/* D's terms under the teacher (reverse KL: the student) and under the student (Jensen-Shannon). */
static __device__ void divergence_of(const row *r, int64_t n, double *first, double *second) {
  double a = 0, b = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    token t = token_at(r, j);
    if (r->kind == KF_REVERSE_KL)
      a += (double)expf((float)t.q) * (t.q - t.p);
    else
      a += (double)expf((float)t.p) * (t.p - (r->kind == KF_FORWARD_KL ? t.q : t.mean));
    if (r->kind == KF_JENSEN_SHANNON) b += (double)expf((float)t.q) * (t.q - t.mean);
  }
  *first = kf_cuda_sum(a);
  *second = kf_cuda_sum(b);
}

/* Of D by the student's log-probabilities' own logits. */
static inline __device__ float slope_at(const row *r, int64_t j, double first, double second) {
  token t = token_at(r, j);
  float q = expf((float)t.q);
  if (r->kind == KF_FORWARD_KL) return q - expf((float)t.p);
  return q * (float)(r->kind == KF_REVERSE_KL ? t.q - t.p - first : (t.q - t.mean - second) / 2);
}

static __device__ void loss_row(const kf_cuda_softmax_loss *a, int64_t i) {
  const kf_softmax_loss *l = &a->loss;
  float *x = a->logits + i * a->v, ce = a->weight[i] * l->ce, kl = a->weight[i] * l->kl * l->temperature;
  bool distils = a->teacher && l->kl != 0;
  row r = {x, a->teacher + i * a->v, 0, 0, 1 / (double)l->temperature, l->divergence};
  float most = most_of(x, a->v).value, aim = x[a->target[i]];
  double lse = log_sum_exp(x, most, 1, a->v), first = 0, second = 0;
  if (distils) {
    r.q_lse = l->temperature == 1 ? lse : log_sum_exp(x, most, 1 / l->temperature, a->v);
    r.p_lse = log_sum_exp(r.teacher, most_of(r.teacher, a->v).value, 1 / l->temperature, a->v);
    divergence_of(&r, a->v, &first, &second);
  }
  for (int64_t j = threadIdx.x; j < a->v; j += blockDim.x) {
    float slope = distils ? kl * slope_at(&r, j, first, second) : 0;
    x[j] = slope + ce * (expf((float)((double)x[j] - lse)) - (j == a->target[i] ? 1.0f : 0.0f));
  }
  if (threadIdx.x == 0) {
    a->nll[i] = lse - (double)aim;
    a->divergence[i] = l->divergence == KF_JENSEN_SHANNON ? (first + second) / 2 : first;
  }
}

KF_KERNEL(softmax_loss, kf_cuda_softmax_loss, a) {
  KF_EACH_BLOCK(i, a.m) {
    if (a.weight[i] != 0) {
      loss_row(&a, i);
      continue;
    }
    for (int64_t j = threadIdx.x; j < a.v; j += blockDim.x) a.logits[i * a.v + j] = 0;
    if (threadIdx.x == 0) a.nll[i] = a.divergence[i] = 0;
  }
}

cudaError_t kf_cuda_launch_softmax_loss(cudaStream_t stream, const kf_cuda_softmax_loss *job) {
  KF_LAUNCH(softmax_loss, kf_cuda_blocks(job->m), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}
