/* What the libraries below choose badly by themselves and take from the environment alone. */
#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* OpenBLAS takes a processor younger than itself for one of 2004. NULL: it knew better, or this processor is no more. */
static const char *kernels(void) {
#ifdef __x86_64__
  if (strcmp(openblas_get_corename(), "Prescott")) return NULL;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return NULL;
}

bool kf_environment(void) {
  const char *wanted = getenv("OPENBLAS_CORETYPE") ? NULL : kernels();
  bool spins = !getenv("GOMP_SPINCOUNT") && !getenv("OMP_WAIT_POLICY");
  bool set = spins && setenv("GOMP_SPINCOUNT", "10000", 1) == 0;
  return (wanted && setenv("OPENBLAS_CORETYPE", wanted, 1) == 0) || set;
}
