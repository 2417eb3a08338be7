"""The wire formats of other reward servers, so that their clients come over by a change of URL.

A dialect is a translation of a body to what `Scoring` is asked, and of the answer back: keys, lanes, quotas,
limits and deadlines are those of /v1/scores. Where a dialect has no place for an item that failed, the whole
request fails: a failure is never a number.
"""

OPEN_INFERENCE = "/v2/"
"""Where the paths of the Open Inference Protocol begin; its clients can be told no other place."""
VERL_OMNI, FLOW_GRPO = "/compat/verl-omni/", "/compat/flow-grpo/"
"""Where the dialects are that send pickles."""
