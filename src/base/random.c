#include "base/random.h"

#include <math.h>

void kf_random_seed(kf_random *r, uint64_t seed) {
  for (int i = 0; i < 4; i++) {
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    r->s[i] = z ^ (z >> 31);
  }
}

static uint64_t rotate(uint64_t x, int k) {
  return x << k | x >> (64 - k);
}

uint64_t kf_random_u64(kf_random *r) {
  uint64_t *s = r->s, result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate(s[3], 45);
  return result;
}

double kf_random_uniform(kf_random *r) {
  return (double)(kf_random_u64(r) >> 11) * 0x1p-53;
}

double kf_random_normal(kf_random *r) {
  double u = 1 - kf_random_uniform(r), v = kf_random_uniform(r);
  return sqrt(-2 * log(u)) * cos(6.283185307179586477 * v);
}
