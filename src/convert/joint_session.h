/* What transmla and care share: the choice of rope_dim and freqfold on held-out calibration text, and the conversion layer by
 * layer on the hidden states that reach each layer. */
#ifndef KF_CONVERT_JOINT_SESSION_H
#define KF_CONVERT_JOINT_SESSION_H

#include "convert/calibrator.h"
#include "convert/joint_latent.h"
#include "convert/shared.h"

/* Whose hidden states a layer's statistics are of. */
typedef enum kf_joint_statistics {
  KF_JOINT_CONVERTED, /* the model with all layers before it converted */
  KF_JOINT_SOURCE,    /* the source */
  KF_JOINT_PARTIAL,   /* mix of heads: the source; latents: the model whose layers before it lost RoPE, but no rank */
} kf_joint_statistics;

enum { KF_JOINT_TRIED = 9 };
typedef struct kf_joint_choice {
  int rope_dim, freqfold;
  double kl; /* on the windows held out, in the source's statistics; 0 when there was nothing to choose */
} kf_joint_choice;

typedef struct kf_joint_session {
  const kf_plan *p;
  kf_calibrator *c;
  kf_joint_settings settings;
  kf_joint_statistics statistics;
  kf_joint_choice tried[KF_JOINT_TRIED];
  int count, best;
  int *rank;               /* [layers] latents; may be changed before the first layer is mapped */
  float *source, *student; /* hidden states that enter layer `next`: NULL where they are not needed */
  double *moment[2];       /* [hidden + 1, hidden + 1] of the source's, of the student's */
  kf_shared moments;       /* what surveys found, where the options share it; file NULL: not kept */
  int next;
} kf_joint_session;

/* rope_dim and freqfold are the keys' places among the method's. Refuses what no layer can have. */
kf_status kf_joint_resolve(kf_plan *p, int rope_dim, int freqfold, kf_error *e);
/* settings: rope_dim and freqfold 0 where they are to be chosen. */
kf_status kf_joint_open(const kf_plan *p, const kf_corpus *corpus, const kf_joint_settings *settings,
                        kf_joint_statistics statistics, kf_joint_session **out, kf_error *e);
/* Calls visit for every layer in the source's statistics, before the first is mapped. */
typedef kf_status (*kf_joint_visit)(void *user, kf_joint_session *s, int layer, const kf_projections *p, const double *moment,
                                    kf_error *e);
kf_status kf_joint_survey(kf_joint_session *s, kf_joint_visit visit, void *user, kf_error *e);

#endif
