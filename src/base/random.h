/* xoshiro256** seeded by splitmix64: the same numbers everywhere. */
#ifndef KF_BASE_RANDOM_H
#define KF_BASE_RANDOM_H

#include <stdint.h>

typedef struct kf_random {
  uint64_t s[4];
} kf_random;

void kf_random_seed(kf_random *r, uint64_t seed);
uint64_t kf_random_u64(kf_random *r);
double kf_random_uniform(kf_random *r); /* [0, 1) */
double kf_random_normal(kf_random *r);  /* mean 0, variance 1 */

#endif
