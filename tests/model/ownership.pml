/* Who may run the VM: Chime's protocol of ownership, small enough to look at every state that it can reach.
 *
 * One VM, two nodes. Each option (`:: d_step`) is one step; any step may be the next whenever its guard allows it, or
 * never. So delay, loss, reordering and death at any point need no words of their own: they are steps not taken.
 *
 *   server(n)   what the server does about node n; a step is one committed turn
 *   judge(m)    what it does about attempt m of a migration
 *   agent(n)    what the agent does; a step is what it has recorded, and then done
 *   host(n)     power, libvirt and qemu
 *
 * Macros that add something: LOCAL_DRAIN, LOST_SNAPSHOT, and MIGRATION: live migration, and a node C of which no more
 * is known than that it may be given the VM, and runs it from that moment on. The other macros are defects: run.py
 * names them, and checks that each is found. README.md says what is left out, and why that hides nothing.
 */

#ifndef EPOCHS
#define EPOCHS 2     /* as many owners, one after another */
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2   /* migrations */
#endif

#define A 0
#define B 1
#define C 2
#define OTHER (1 - n)
#define NAME(n) ('A' + n)

mtype:process  = { nothing, running, paused, incoming };  /* incoming: of a migration, not runnable before its Finish */
mtype:evidence = { unproven, by_agent, by_operator };
mtype:job      = { idle, copying, handing, finishing, succeeded, refused };

/* --- state -------------------------------------------------------------------------------------------------------- */

/* What the database says to a node. */
typedef Inventory {
    bool there;
    byte epoch;         /* of the assignment; 0: the VM is another's */
    byte release;       /* "you do not own it any more, up to this epoch"; 0: none */
    bool drained;
    bool newest_drain;  /* its drain serial is the node's newest; serials are never asked for more than that */
#ifdef MIGRATION
    byte ended;         /* this attempt is over at its source: see what is left of it here; 0: none */
    byte failed;        /* the last attempt that was judged to have failed */
    bool never_ran;     /* ... and its process never ran on the target */
    bool census;        /* the owner's newest drain is proven: say whether the VM is here */
#endif
}

typedef Node {
    /* the server's row of the node */
    bool drained;
    mtype:evidence evidence = unproven;
    byte release;

    /* the agent's snapshot */
    byte held;          /* epoch of the assignment; 0: none */
    byte tombstone;     /* released up to this epoch */
    bool told_drained;
    bool told_newest;   /* ... with the serial of the newest drain */
    bool local_drain;   /* drained by an operator on the node */
    bool confirmed;     /* an inventory was applied in this boot */

    /* An answer on its way to the agent, already outdated. The agent takes one answer to its newest question; that may
     * be the database as it is, or as it was at any moment since the question. */
    Inventory answer;

    /* the host */
    bool up = true;
    mtype:process process = nothing;
    bool creating;      /* a start is under way, whether or not the agent that ordered it still lives */

    /* What the agent ever said. It may arrive at any later time, any number of times. */
    bool said_clean;                 /* the newest drain is applied, and there is no process */
    bool said_released[EPOCHS + 1];  /* by epoch: nothing is left of it */

#ifdef MIGRATION
    byte moving;        /* snapshot: the attempt that was begun here and is undecided; 0: none */
    mtype:job job = idle;      /* libvirt at the source */
    byte attempt;       /* ... which it is, or was, busy with */
    bool migrated;      /* libvirt at the source: the process ended because it had arrived; forgotten with the boot */
    byte finish;        /* libvirt at the target: the Finish of this attempt is on its way; 0: none */
    byte tag;           /* the attempt that the process came by, kept in the domain's metadata; 0: started here */
    bool said_absent;   /* in the newest census: no process here */
#endif
}

Node node[2];
byte owner = A;
byte epoch = 1;

#ifdef MIGRATION
byte ended, failed;                  /* the server's, as in Inventory */
bool never_ran;
byte attempts;                       /* begun so far; each has its own id */
byte begun_in[ATTEMPTS + 1];         /* the epoch in which it was begun: part of the id */
byte source[ATTEMPTS + 1];           /* the node that began it */
/* What was ever said of an attempt. */
bool said_ended[ATTEMPTS + 1];       /* source: over here, outcome unknown */
bool said_done[ATTEMPTS + 1];        /* source: libvirt says that it arrived */
bool said_runs[ATTEMPTS + 1];        /* target: it runs here */
bool said_gone[ATTEMPTS + 1];        /* target: nothing is left of it */
bool said_never[ATTEMPTS + 1];       /* target: nothing is left of it, and it never ran */
bool ran[ATTEMPTS + 1];              /* the truth, for R1 alone: it ran on the target */
#endif

/* --- the guard, and what defects do to it ------------------------------------------------------------------------- */

#ifdef MIGRATION
#define UNDECIDED(n) (node[n].moving != 0)
#define ARRIVES(n) (node[n].process == incoming && node[n].finish == node[n].tag)
#else
#define UNDECIDED(n) false
#define ARRIVES(n) false
#endif

#ifdef NO_BOOT_CHECK
#define CONFIRMED(n) true
#else
#define CONFIRMED(n) node[n].confirmed
#endif
#ifdef START_WHILE_UNDECIDED
#define SETTLED(n) true
#else
#define SETTLED(n) (!UNDECIDED(n))
#endif
#ifdef NO_SCAN
#define NO_PROCESS(n) true
#else
#define NO_PROCESS(n) (node[n].process == nothing)
#endif

#define DRAINED(n) (node[n].told_drained || node[n].local_drain)

/* What the snapshot must say before a start; what the host must say is NO_PROCESS. */
#define MAY_START(n) (node[n].held > node[n].tombstone && CONFIRMED(n) && !DRAINED(n) && SETTLED(n))

/* --- the properties ----------------------------------------------------------------------------------------------- */

bool S1 = true;  /* at most one process with runnable vCPUs, over all nodes */
bool S2 = true;  /* no assignment to another node while the old owner may run the VM, nor without evidence */
bool R1 = true;  /* the source of a migration never runs once the target has run: its memory is older than the disk */

#define RUNS(n) (node[n].process == running)

/* It runs, or can come to run without another word of the server. */
#define MAY_RUN(n) (RUNS(n) || node[n].creating || ARRIVES(n) || MAY_START(n))

/* On n a process becomes runnable. */
inline begin_to_run(n) {
    S1 = !RUNS(A) && !RUNS(B) && owner != C;
    assert(S1);
    node[n].process = running
}

/* In one turn: `to` is the owner in the next epoch, and the old owner has a release. `proven`: evidence is recorded
 * with it. S2 asks also that the evidence is true, and here even of every node but the new owner. */
inline give_to(to, proven) {
    S2 = (proven) && (to == A || !MAY_RUN(A)) && (to == B || !MAY_RUN(B)) && owner != C;
    assert(S2);
    if :: owner != C -> node[owner].release = epoch :: else fi;
    owner = to;
    epoch++;
#ifdef MIGRATION
    ended = 0;
    S1 = to != C || (!RUNS(A) && !RUNS(B));
    assert(S1)
#endif
}

/* --- the server --------------------------------------------------------------------------------------------------- */

/* Its death loses sessions and what it was about to send. Nothing here depends on sessions, so it needs no step. */

inline write_inventory(n) {
    node[n].answer.there = true;
    node[n].answer.epoch = (owner == n -> epoch : 0);
    node[n].answer.release = node[n].release;
    node[n].answer.drained = node[n].drained;
    node[n].answer.newest_drain = true;
#ifdef MIGRATION
    node[n].answer.ended = (owner == OTHER -> ended : 0);
    node[n].answer.failed = failed;
    node[n].answer.never_ran = never_ran;
    node[n].answer.census = (owner == OTHER -> node[OTHER].evidence != unproven : false)
#endif
}

/* Before each change of what the database says to n: the present answer may be on its way. */
inline outdate(n) {
    if
    :: node[n].up && !node[n].answer.there -> write_inventory(n)
    :: else
    fi
}

/* Evidence, also that which is on its way, belongs to one drain. */
inline forget_evidence(n) {
#ifndef EVIDENCE_OF_ANOTHER_DRAIN
    node[n].evidence = unproven;
    node[n].said_clean = false;
#endif
    node[n].told_newest = false;
    node[n].answer.newest_drain = false;
#ifdef MIGRATION
    node[OTHER].said_absent = false;
    node[OTHER].answer.census = false
#endif
}

/* With MIGRATION only a drain that a rebuild may follow is of interest; any other one just starts less. */
#ifdef MIGRATION
#define DRAINABLE(n) (owner == n && epoch < EPOCHS)
#else
#define DRAINABLE(n) true
#endif
#ifdef FALSE_WORD
#define ATTESTED true                    /* a lie */
#elif defined(WORD_ABOUT_NOW)
#define ATTESTED (!RUNS(n))              /* true, but only now */
#else
#define ATTESTED (!node[n].up)           /* the host is off */
#endif
#ifdef REBUILD_WITHOUT_EVIDENCE
#define REBUILDABLE (owner == n && node[n].drained && epoch < EPOCHS)
#else
#define REBUILDABLE (owner == n && node[n].drained && epoch < EPOCHS && node[n].evidence != unproven)
#endif
#ifdef RELEASE_UNTIL_SENT
#define RELEASE_OVER true
#else
#define RELEASE_OVER node[n].said_released[node[n].release]
#endif

proctype server(byte n) {
end:
    do
    :: d_step { DRAINABLE(n) ->
        printf("server: drains %c\n", NAME(n));
        outdate(n);
        node[n].drained = true;
        forget_evidence(n)
    }
    :: d_step { node[n].drained ->
        printf("server: enables %c\n", NAME(n));
        outdate(n);
        node[n].drained = false;
#ifndef EVIDENCE_OF_ANOTHER_DRAIN
        node[n].evidence = unproven
#endif
    }
    :: d_step { node[n].drained && node[n].evidence == unproven && node[n].said_clean && epoch < EPOCHS ->
        printf("server: hears from %c's agent that nothing runs there: evidence\n", NAME(n));
#ifdef MIGRATION
        outdate(OTHER);
#endif
        node[n].evidence = by_agent
    }
    :: d_step { node[n].drained && node[n].evidence == unproven && ATTESTED && epoch < EPOCHS ->
        printf("server: a person attests that %c is powered off: evidence\n", NAME(n));
#ifdef MIGRATION
        outdate(OTHER);
#endif
        node[n].evidence = by_operator
    }
    :: d_step { REBUILDABLE ->
        printf("server: rebuilds the VM: %c -> %c, epoch %d\n", NAME(n), NAME(OTHER), epoch + 1);
        outdate(A);
        outdate(B);
        give_to(OTHER, node[n].evidence != unproven)
    }
    :: d_step { node[n].release > 0 && RELEASE_OVER ->
        printf("server: forgets the release of %c\n", NAME(n));
        outdate(n);
        node[n].release = 0
    }
#ifdef SEND_BEFORE_COMMIT
    :: d_step { node[n].up && node[n].drained && !node[n].answer.there ->
        printf("server: enables %c and tells it, but dies and has not committed\n", NAME(n));
        write_inventory(n);
        node[n].answer.drained = false
    }
#endif
#ifdef MIGRATION
    /* On a third node: a migration of which the server has not heard may have brought the VM to the other one. */
#ifdef NO_CENSUS
    :: d_step { REBUILDABLE ->
#else
    :: d_step { REBUILDABLE && (node[OTHER].said_absent || !node[OTHER].up) ->
#endif
        printf("server: rebuilds the VM: %c -> C, epoch %d\n", NAME(n), epoch + 1);
        outdate(A);
        outdate(B);
        give_to(C, node[n].evidence != unproven)
    }
#endif
    od
}

#ifdef MIGRATION

#define SOURCE source[m]
#define TARGET (1 - source[m])

#ifdef NO_EPOCH
#define OF_THIS_EPOCH (begun_in[m] > 0 && owner != TARGET)
#else
#define OF_THIS_EPOCH (begun_in[m] == epoch)
#endif
#ifdef STALE_MIGRATION_RESULT
#define OPEN (OF_THIS_EPOCH && epoch < EPOCHS)
#else
#define OPEN (OF_THIS_EPOCH && epoch < EPOCHS && m > failed)
#endif
#ifdef JUDGED_TOO_EARLY
#define OVER true
#else
#define OVER said_ended[m]
#endif

/* It arrived when either end says so. It failed when the source has said that it is over, and after that the target
 * that nothing is left of it: in this order, since a source that still goes on would make another process there. The
 * server alone judges, and each attempt once. */
proctype judge(byte m) {
end:
    do
    :: d_step { OPEN && (said_done[m] || said_runs[m]) ->
        printf("server: hears that attempt %d arrived: %c -> %c, epoch %d\n", m, NAME(SOURCE), NAME(TARGET), epoch + 1);
        outdate(A);
        outdate(B);
        give_to(TARGET, true)
    }
    :: d_step { OPEN && ended != m && OVER ->
        printf("server: hears that attempt %d is over at its source, and asks the target\n", m);
        outdate(TARGET);
        ended = m
    }
    :: d_step { ended == m && (said_gone[m] || said_never[m] || !node[TARGET].up) ->
        printf("server: hears, or is told by a person, that nothing is left of attempt %d: it failed\n", m);
        outdate(A);
        outdate(B);
        ended = 0;
        failed = m;
        never_ran = said_never[m]
    }
    od
}
#endif

/* --- the agent ---------------------------------------------------------------------------------------------------- */

inline forget_answer(n) {
#ifndef NO_NONCE
    node[n].answer.there = false;
    node[n].answer.epoch = 0;
    node[n].answer.release = 0;
    node[n].answer.drained = false;
    node[n].answer.newest_drain = false;
#ifdef MIGRATION
    node[n].answer.ended = 0;
    node[n].answer.failed = 0;
    node[n].answer.never_ran = false;
    node[n].answer.census = false;
#endif
#endif
    skip
}

inline end_process(n) {
    node[n].process = nothing;
#ifdef MIGRATION
    node[n].tag = 0
#endif
}

#ifdef MIGRATION
/* The source of an attempt goes on. */
inline resume(n) {
    R1 = !ran[node[n].attempt];
    assert(R1);
    printf("%c: the source goes on\n", NAME(n));
    begin_to_run(n)
}

#ifdef RESUME_AFTER_RUN
#define MAY_RESUME(n) true
#else
#define MAY_RESUME(n) (node[n].answer.never_ran && node[n].answer.failed == node[n].moving)
#endif

/* As the source. The verdict decides the attempt, and so does the loss of the VM. A paused process goes on only if the
 * target never ran. */
inline follow_verdict(n) {
    if
    :: node[n].held == 0 && node[n].job == idle -> node[n].moving = 0
    :: node[n].held > 0 && UNDECIDED(n) && node[n].answer.failed >= node[n].moving ->
        if
        :: node[n].process == paused && MAY_RESUME(n) -> resume(n)
        :: node[n].process == paused && !MAY_RESUME(n) ->
            printf("%c: agent ends the paused source\n", NAME(n));
            end_process(n)
        :: else
        fi;
        node[n].moving = 0
    :: else
    fi
}

/* As the target. An arrival that does not run yet is ended; then it is told what is here. */
inline answer_questions(n) {
    if
    :: node[n].answer.ended > 0 && node[n].process == incoming && node[n].tag == node[n].answer.ended ->
        said_never[node[n].answer.ended] = true;
        end_process(n)
    :: node[n].answer.census && node[n].process == incoming -> end_process(n)
    :: node[n].answer.ended > 0 && node[n].process == nothing -> said_gone[node[n].answer.ended] = true
    :: else
    fi;
    if
    :: node[n].answer.census && node[n].process == nothing -> node[n].said_absent = true
    :: else
    fi
}
#endif

/* Only a release takes the VM away; an epoch never falls; a release is never forgotten. */
inline apply(n) {
    printf("%c: agent applies an inventory: epoch %d, release %d, drained %d\n", NAME(n), node[n].answer.epoch,
           node[n].answer.release, node[n].answer.drained);
    if
    :: node[n].answer.release > node[n].tombstone -> node[n].tombstone = node[n].answer.release
    :: else
    fi;
    if
    :: node[n].answer.epoch > node[n].held -> node[n].held = node[n].answer.epoch
    :: else
    fi;
    if
    :: node[n].held <= node[n].tombstone -> node[n].held = 0
    :: else
    fi;
    node[n].told_drained = node[n].answer.drained;
    node[n].told_newest = node[n].answer.drained && node[n].answer.newest_drain;
    node[n].confirmed = true;
#ifdef MIGRATION
    follow_verdict(n);
    answer_questions(n);
#endif
    forget_answer(n)
}

#ifdef NO_SETTLING
#define QUIET(n) (node[n].process == nothing)
#else
#define QUIET(n) (node[n].process == nothing && !node[n].creating)
#endif

proctype agent(byte n) {
end:
    do
    :: d_step { node[n].up && !node[n].answer.there -> write_inventory(n); apply(n) }
    :: d_step { node[n].up && node[n].answer.there -> printf("%c: an outdated answer comes\n", NAME(n)); apply(n) }
    :: d_step { node[n].up && node[n].answer.there ->
        printf("%c: agent asks anew, or dies\n", NAME(n));
        forget_answer(n)
    }
#ifdef DRAIN_NOT_RECORDED
    :: d_step { node[n].up && node[n].told_drained ->
        printf("%c: agent dies, and has not recorded the drain\n", NAME(n));
        node[n].told_drained = false;
        forget_answer(n)
    }
#endif
#ifdef LOCAL_DRAIN
    :: d_step { node[n].up && !node[n].local_drain ->
        printf("%c: chime-agent drain\n", NAME(n));
        node[n].local_drain = true
    }
    :: d_step { node[n].up && node[n].local_drain && node[n].confirmed ->
        printf("%c: the local drain ends, the server's word holds\n", NAME(n));
        node[n].local_drain = false
    }
#endif
#ifdef LOST_SNAPSHOT
    :: d_step { node[n].up ->
        printf("%c: agent dies, its snapshot is lost\n", NAME(n));
        node[n].held = 0;
        node[n].tombstone = 0;
        node[n].told_drained = false;
        node[n].told_newest = false;
        node[n].local_drain = false;
        node[n].confirmed = false;
#ifdef MIGRATION
        node[n].moving = 0;
#endif
        forget_answer(n)
    }
#endif
    :: d_step { node[n].up && !node[n].creating && NO_PROCESS(n) && MAY_START(n) ->
        printf("%c: agent orders a start, epoch %d\n", NAME(n), node[n].held);
        node[n].creating = true
    }
    :: d_step { node[n].up && node[n].process != nothing &&
                (DRAINED(n) || (node[n].held == 0 && node[n].tombstone > 0)) ->
        printf("%c: agent ends the process: drained or released\n", NAME(n));
        end_process(n)
    }
    :: d_step { node[n].up && DRAINED(n) && node[n].told_newest && QUIET(n) && !node[n].said_clean ->
        printf("%c: agent proves the drain\n", NAME(n));
        node[n].said_clean = true
    }
#ifndef MIGRATION
    :: d_step { node[n].up && node[n].tombstone > 0 && node[n].held == 0 && node[n].process == nothing &&
                !node[n].creating && !node[n].said_released[node[n].tombstone] ->
        printf("%c: agent confirms: epoch %d is gone\n", NAME(n), node[n].tombstone);
        node[n].said_released[node[n].tombstone] = true
    }
#else
    /* Ordered by the server or by an operator on the node: no matter here. The attempt is recorded before it begins. */
    :: d_step { node[n].up && node[n].held > 0 && !DRAINED(n) && !UNDECIDED(n) && node[n].job == idle && RUNS(n) &&
                attempts < ATTEMPTS ->
        attempts++;
        printf("%c: agent begins attempt %d, epoch %d\n", NAME(n), attempts, node[n].held);
        begun_in[attempts] = node[n].held;
        source[attempts] = n;
        node[n].moving = attempts;
        node[n].attempt = attempts;
        node[n].migrated = false;
        node[n].job = copying
    }
    :: d_step { node[n].up && UNDECIDED(n) && node[n].job == idle && RUNS(n) ->
        printf("%c: agent sees that attempt %d is over and the VM runs here: it failed\n", NAME(n), node[n].moving);
        node[n].moving = 0
    }
    :: d_step { node[n].up && UNDECIDED(n) && node[n].job == idle && !RUNS(n) && !node[n].migrated &&
                !said_ended[node[n].moving] ->
        printf("%c: agent says that attempt %d is over, the outcome unknown\n", NAME(n), node[n].moving);
        said_ended[node[n].moving] = true
    }
    :: d_step { node[n].up && UNDECIDED(n) && node[n].migrated && !said_done[node[n].moving] ->
        printf("%c: agent says that attempt %d arrived\n", NAME(n), node[n].moving);
        said_done[node[n].moving] = true
    }
    :: d_step { node[n].up && RUNS(n) && node[n].tag > 0 && !said_runs[node[n].tag] ->
        printf("%c: agent says that attempt %d arrived and runs\n", NAME(n), node[n].tag);
        said_runs[node[n].tag] = true
    }
#endif
    od
}

/* --- the host ----------------------------------------------------------------------------------------------------- */

proctype host(byte n) {
end:
    do
    :: d_step { node[n].up ->
        printf("%c: power lost\n", NAME(n));
        node[n].up = false;
        node[n].creating = false;
        node[n].confirmed = false;
        end_process(n);
        forget_answer(n);
#ifdef MIGRATION
        node[n].job = idle;
        node[n].migrated = false;
        node[n].finish = 0
#endif
    }
    :: d_step { !node[n].up ->
        printf("%c: boots\n", NAME(n));
        node[n].up = true
    }
    :: d_step { node[n].process != nothing ->
        printf("%c: qemu dies\n", NAME(n));
        end_process(n)
    }
    :: d_step { node[n].creating && NO_PROCESS(n) ->
        printf("%c: the VM runs\n", NAME(n));
        node[n].creating = false;
        begin_to_run(n)
    }
    :: d_step { node[n].creating ->
        printf("%c: the start fails\n", NAME(n));
        node[n].creating = false
    }
#ifdef MIGRATION
    /* As the source; it talks to the target's libvirt, not to its agent. */
    :: d_step { node[n].job == copying && node[OTHER].up && node[OTHER].process == nothing ->
        printf("%c -> %c: the target is prepared\n", NAME(n), NAME(OTHER));
        node[OTHER].process = incoming;
        node[OTHER].tag = node[n].attempt
    }
    :: d_step { node[n].job == copying && RUNS(n) &&
                node[OTHER].process == incoming && node[OTHER].tag == node[n].attempt ->
        printf("%c -> %c: all is copied, the source is paused\n", NAME(n), NAME(OTHER));
#ifndef NO_PAUSE
        node[n].process = paused;
#endif
        node[n].job = handing
    }
    :: d_step { node[n].job == handing && node[OTHER].up ->
        printf("%c -> %c: Finish is sent\n", NAME(n), NAME(OTHER));
        node[OTHER].finish = node[n].attempt;
        node[n].job = finishing
    }
    :: d_step { node[n].job == copying || node[n].job == handing || node[n].job == refused ->
        printf("%c: the migration ends, and the target can not have run\n", NAME(n));
        node[n].job = idle;
        if :: node[n].process == paused -> resume(n) :: else fi
    }
    :: d_step { node[n].job == succeeded ->
        printf("%c: hears that the target runs: the source is ended\n", NAME(n));
        node[n].job = idle;
        node[n].migrated = true;
        end_process(n)
    }
    :: d_step { node[n].job == finishing || node[n].job == succeeded || node[n].job == refused ->
        printf("%c: the link is cut after Finish: the source stays paused\n", NAME(n));
        node[n].job = idle;
#ifdef RESUME_AFTER_CUT
        if :: node[n].process == paused -> resume(n) :: else fi
#endif
    }
    /* As the target. */
    :: d_step { ARRIVES(n) ->
        printf("%c: the target runs, attempt %d\n", NAME(n), node[n].tag);
        ran[node[n].tag] = true;
        if :: node[OTHER].job == finishing -> node[OTHER].job = succeeded :: else fi;
        node[n].finish = 0;
        begin_to_run(n)
    }
    :: d_step { node[n].finish > 0 && !ARRIVES(n) ->
        printf("%c: Finish finds nothing to finish\n", NAME(n));
        if :: node[OTHER].job == finishing -> node[OTHER].job = refused :: else fi;
        node[n].finish = 0
    }
#endif
    od
}

init {
    atomic {
        run server(A); run server(B);
        run agent(A); run agent(B);
        run host(A); run host(B);
#ifdef MIGRATION
        run judge(1); run judge(ATTEMPTS)
#endif
    }
}
