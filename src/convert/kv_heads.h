/* Fewer KV heads (Effectively Compress KV Heads for LLM, arXiv 2406.07056): each group of neighbouring KV heads becomes one by the
 * SVD of their calibration caches, and what expands it again goes into the queries and the output projection.
 *
 * Values: the d_v leading directions V of the group's values; W_v' = V W_v, W_o,h' = W_o,h V_g^T.
 * Keys: only a mix of the heads' pairs of one frequency, as complex numbers, commutes with RoPE, so each pair f has its own: with y
 * the leading eigenvector of E[k_f k_f^H] over the group's heads, p_f = y^H k_f, k_gf ~ y_g p_f, and the queries become
 * conj(y_g) q_hf. A layer without RoPE has its keys done as the values. */
#ifndef KF_CONVERT_KV_HEADS_H
#define KF_CONVERT_KV_HEADS_H

#include "convert/projections.h"

/* o: [hidden, heads d_v]. moment: [width, width] of the layer's input. kv_heads divides the source's. */
kf_status kf_kv_heads_merge(const kf_projections *p, const float *o, const double *moment, int kv_heads, kf_mapped *out,
                            kf_error *e);

#endif
