"""Where the event loop over workers keeps what: the places of its arrays, one row each.

Of requests only the answer is kept, in columns; what is known of one while it is under way lies in a *slot*, which is
its own from its first admission to its end. There are as many slots as requests under way at once, however many there
are in all.
"""

from __future__ import annotations

# Pools: prompts alone, answers alone, or both together.
BOTH, PREFILL, DECODE = range(3)

# Places in a row of limits, one row a pool.
(
    ROLE,
    NUM_SEQS,  # of a rank
    NUM_TOKENS,  # of a rank's step
    NUM_BLOCKS,  # of a rank
    BLOCK_SIZE,
    CHUNKED,
    WHOLE_PROMPT,
    WATERMARK,
    PROMISE,
    STATIC,
    PROMPTS_FIRST,  # the step_order of gambrel.engine.state.Limits
    BATCH_SEQS,  # sequences in one micro-batch
    RANKS,  # of a worker
    STAGES,
    FIRST_STAGE,  # its row in the tables
    WINDOW,
    FIRST_WORKER,
    NUM_WORKERS,
    BY_SCORE,  # ranks are chosen by what waits and runs there, else in turn
    PULL,  # decode workers fetch finished prompts, else prefill workers send to reserved blocks
    ALONG,  # the first token comes with them, else the decode worker computes the prompt's last one again
    KEPT_TOKENS,  # free for each running answer where the decode worker reserves first
    SPARE_SEQS,  # prompts on their way beyond NUM_SEQS
    STATE,  # blocks of a request's recurrent state
    CACHING,
    NUM_LIMITS,
) = range(26)

# Places in a row of workers.
(
    POOL,
    FLYING,  # micro-batches in flight
    OLDEST,  # place of the first of them
    TURN,  # rank that is next in turn
    GIVEN,  # requests so far
    DONE,  # of these, gone
    TOUCHED,  # something happened: try to schedule
    NUM_WORKER,
) = range(8)

# Places in a row of ranks; lines are of requests, chained by ``follow``.
(
    RUNNING,
    PREEMPTED,
    LATEST,  # of these
    FREE,  # blocks
    PROMISED,
    HEAD,
    TAIL,
    WAITING,  # in that line
    READY,  # first of those whose prompt has arrived
    READY_TAIL,
    COMING,  # requests that hold blocks and do not run yet
    LOST,  # somebody was preempted in this attempt
    NUMBER,  # sequences in the micro-batch that is being formed
    BUDGET,  # tokens it may still have
    NEW,  # tokens that those whose prompts end in it have still to generate
    RESTING,  # running sequences that can go on: decoders that are not in flight, prompts with more to compute
    ADMITTED,  # admissions so far
    DECODERS,  # running ones, in flight or not
    ASKED,  # tokens they generate in all
    TO_COME,  # of these, still to be generated
    NUM_RANK,
) = range(21)

# Places in a slot; a line of the processor's cache holds one.
(
    COMPUTED,  # tokens in the cache, scheduled ones included
    GENERATED,
    HELD,  # blocks where it runs
    DECODING,
    IN_FLIGHT,  # chunks of its prompt
    ORDER,  # number of its admission to that rank
    HIT,  # tokens found in the prefix cache that have not been sent on yet
    AT,  # rank where it waits or runs after its prompt is done
    SENDER,  # prefill rank that holds its blocks
    REQUEST,
    PROMPT,
    OUTPUT,
) = range(12)
NUM_SLOT = 16

# Places in a row of sums, one row a rank.
DECODES, SAMPLED, KV, KV_WINDOWED, PRE_TOKENS, PRE_CHUNKS, PAIRS, PAIRS_WINDOWED, NUM_SUMS = range(9)

# How far the loop is: whole numbers, then seconds.
RELEASED, ENDED, NUM_EVENTS, NUM_SAMPLED, NUM_PROGRESS = range(5)
NOW, NEXT_SAMPLE, EVERY, NUM_CLOCK = range(4)
