/* A basis of the latents for engines that round them. R c in place of c, with R in kv_a and R^-1 in kv_b, is the same model.
 *
 * llama.cpp's flash attention on a CPU adds up the latents that a decoding step attends to in f16. Each number is then rounded by
 * a part of its size, and the output is off by sum_l M_ll G_ll: M the second moment of the sum, G what an error of the latents
 * costs. For R c that is (R M R^T)_ll (R^-T G R^-1)_ll, least where both are the same diagonal Theta, mixed evenly: (tr Theta)^2 / n
 * (minimum roundoff noise: Mullis and Roberts 1976, Hwang 1977). A mean far larger than the rest, as latents have, is then spread over
 * all numbers and rounded n times, with errors that average out. */
#ifndef KF_EXPORT_STOCK_BASIS_H
#define KF_EXPORT_STOCK_BASIS_H

#include "export/stock.h"

/* s->basis, one a layer, from 2560 tokens that the model at `path` writes. The whole model is in memory meanwhile. Errors: a layer
 * whose latents have a norm of their own. */
kf_status kf_stock_find_basis(const char *path, const kf_hooks *hooks, kf_stock *s, kf_error *e);
void kf_stock_free_basis(kf_stock *s);
/* R and R^-1 for latents with moment m and gain g, both [n, n] and overwritten. */
kf_status kf_least_roundoff(double *m, double *g, int64_t n, kf_stock_basis *out, kf_error *e);

#endif
