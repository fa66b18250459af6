/* fold, first half: which rotated channels stand for the keys of a layer, and what each head's query asks of them.
 *
 * Pair f of KV head g is one complex number k_gf = Zk[g, f] . x (re + i im of the half-split rows), rotated by theta_f.
 * A channel j is a complex key p_j = u_j . x, shared by all heads and rotated by one of the source's frequencies; KV head g's
 * pair f is then beta_gfj p_j + ... What the channels do not carry keeps its mean rotation m_hf and goes without one. */
#ifndef KF_CONVERT_ROPE_CHANNELS_H
#define KF_CONVERT_ROPE_CHANNELS_H

#include "convert/attention_statistics.h"
#include "linalg/linalg.h"

typedef struct kf_rope_problem {
  int heads, kv_heads, pairs, hidden; /* H, G, F, d */
  int64_t window, reach;              /* distances seen, and distances that the converted model will meet */
  const double complex *zk;           /* [G F, d] */
  double complex *mean;               /* [H, F] m_hf = E e^{-i theta_f D} over the head's distances */
  double complex *query;              /* [H, F, F] E[conj(q_hf) q_hf'] */
  double complex *gram;   /* [H, F, F] E[(e_f - m_f) conj(e_f' - m_f')], e_f = e^{-i theta_f D}, over the head's distances */
  double complex *moment; /* [G F, G F] E[z z^H] of the stacked keys z */
} kf_rope_problem;

typedef struct kf_channels {
  int count;            /* J */
  int32_t *frequency;   /* [J] index of the source's table */
  double complex *u;    /* [J, d] rows: p_j = u_j . x */
  double complex *beta; /* [H, F, J] */
  double complex *t;    /* [J, G F] the same by the stacked keys: p_j = t_j . z */
} kf_channels;

/* statistics: of at least one window. zk [G F, d] and theta [F] are borrowed. reach >= 1: tokens of the longest context served. */
kf_status kf_rope_problem_create(const kf_attention_statistics *s, const double complex *zk, const double *theta, int64_t reach,
                                 kf_rope_problem *out, kf_error *e);
void kf_rope_problem_free(kf_rope_problem *p);

/* greedy: the `count` strongest components of single frequencies, by the query-weighted energy that a mean rotation would lose.
 * allowed: [F], the frequencies that may be taken, each once (a stock table's slots), at least `count` of them; NULL: any, any
 * number of times. */
kf_status kf_channels_greedy(const kf_rope_problem *p, int count, const bool *allowed, kf_channels *out, kf_error *e);
/* fold: every query head's betas are fitted to all channels together, so that a channel may serve neighbouring frequencies, then
 * the channels to the betas, and so on in turn; frequencies stay. */
kf_status kf_channels_fit(const kf_rope_problem *p, kf_channels *c, kf_error *e);
void kf_channels_free(kf_channels *c);

#endif
