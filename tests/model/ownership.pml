/* Who may run the VM: Chime's protocol of ownership, small enough to look at every state that it can reach.
 *
 * One VM, two nodes. Each option (`:: d_step`) is one step; any step may be the next whenever its guard allows it, or
 * never. So delay, loss, reordering and death at any point need no words of their own: they are steps not taken.
 *
 *   server(n)   what the server does about node n; a step is one committed turn
 *   judge(m)    what it does about attempt m to migrate the VM
 *   agent(n)    what the agent does; a step is what it has recorded, and then done
 *   host(n)     power, libvirt and qemu
 *
 * Macros that add something: LOCAL_DRAIN, LOST_SNAPSHOT, and MIGRATION: live migration, and a node C of which no more
 * is known than that it may be given the VM, and runs it from that moment on; with LIAR it says anything. The other macros
 * are defects: run.py names them, and checks that each is found. README.md says what is left out, and why that hides
 * nothing. State that goes back in time, and a second server, are history.pml's.
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

mtype:process  = { nothing, running, paused, incoming, arrived };  /* of a migration's target: being copied; whole, paused */
mtype:evidence = { unproven, by_agent, by_operator };
mtype:job      = { idle, copying, handing };

/* --- state -------------------------------------------------------------------------------------------------------- */

/* What the database says to a node. */
typedef Inventory {
    bool there;
    byte epoch;         /* of the assignment; 0: the VM is another's */
    byte release;       /* "you do not own it any more, up to this epoch"; 0: none */
    bool drained;
    bool newest_drain;  /* its drain serial is the node's newest; serials are never asked for more than that */
#ifdef MIGRATION
    byte attempt;       /* the server has ordered this attempt, and it is undecided; 0: none */
    byte arrival;       /* the attempt whose copy is the VM; 0: none is */
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
    byte known;         /* snapshot: the newest attempt that it was ever told of */
    byte left;          /* snapshot: the attempt by which the VM has left; 0: none */
    byte arrival;       /* snapshot: as in Inventory */
    mtype:job job = idle;      /* libvirt at the source */
    byte attempt;       /* ... which it is, or was, busy with */
    bool undefined;     /* libvirt at the source: by that attempt the process is gone, and the definition on its disk */
    byte handover;      /* libvirt at the target: somebody has asked it to let the copy of this attempt run; 0: none */
    byte tag;           /* the attempt that the process came by, kept in the domain's metadata; 0: started here */
    bool said_absent;   /* in the newest census: no process here */
#endif
}

Node node[2];
byte owner = A;
byte epoch = 1;

#ifdef MIGRATION
byte open, arrival;                  /* the server's: the undecided attempt; the one by which the owner got the VM */
byte attempts;                       /* ordered so far; each has its own id */
byte begun_in[ATTEMPTS + 1];         /* the epoch in which it was ordered: part of the id */
byte source[ATTEMPTS + 1];           /* the node that it is to leave */
bool begun[ATTEMPTS + 1];            /* the source has begun it: each once */
/* What was ever said of an attempt. */
bool said_left[ATTEMPTS + 1];        /* source: the VM has left */
bool said_failed[ATTEMPTS + 1];      /* source: it has kept the VM */
bool said_runs[ATTEMPTS + 1];        /* target: its copy runs here */
bool stale[ATTEMPTS + 1];            /* the truth, for R1 alone: the VM has run on since its copy was whole */
#endif

/* --- the guard, and what defects do to it ------------------------------------------------------------------------- */

#ifdef MIGRATION
#define UNDECIDED(n) (node[n].moving != 0)
#define ARRIVES(n) (node[n].process == arrived && node[n].handover == node[n].tag)
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
bool R1 = true;  /* no copy runs once the VM has run on elsewhere since it was made: its memory is older than the disk */

#define RUNS(n) (node[n].process == running)

/* It runs, or can come to run without another word of the server. */
#define MAY_RUN(n) (RUNS(n) || node[n].creating || ARRIVES(n) || MAY_START(n))

/* On n a process becomes runnable. */
inline begin_to_run(n) {
    S1 = !RUNS(A) && !RUNS(B) && owner != C;
    assert(S1);
#ifdef MIGRATION
    if :: node[OTHER].process == arrived -> stale[node[OTHER].tag] = true :: else fi;
#endif
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
    open = 0;
    arrival = 0;
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
    node[n].answer.attempt = (owner == n -> open : 0);
    node[n].answer.arrival = (owner == n -> arrival : 0);
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

/* The source decides, and says whether the VM has left or was kept. That the copy runs says the same as that it left:
 * nothing but the source's record, or the server's word after it, lets it run. */
proctype judge(byte m) {
end:
    do
    :: d_step { m == attempts + 1 && open == 0 && owner != C && epoch < EPOCHS ->
        attempts++;
        begun_in[m] = epoch;
        source[m] = owner;
        printf("server: orders attempt %d to migrate the VM away from %c\n", m, NAME(owner));
        outdate(A);
        outdate(B);
        open = m
    }
    :: d_step { OF_THIS_EPOCH && epoch < EPOCHS && (said_left[m] || said_runs[m]) ->
        printf("server: hears that attempt %d arrived: %c -> %c, epoch %d\n", m, NAME(SOURCE), NAME(TARGET), epoch + 1);
        outdate(A);
        outdate(B);
        give_to(TARGET, true);
        arrival = m
    }
    :: d_step { open == m && said_failed[m] ->
        printf("server: hears that attempt %d failed\n", m);
        outdate(A);
        outdate(B);
        open = 0
    }
#ifdef LIAR
    /* C is neither source nor target: what it says of an attempt, also of one that never was, is a sighting. The macros
     * take its word for that of the node that has one. */
    :: d_step { owner != C && epoch < EPOCHS ->
        printf("server: hears from C that attempt %d arrived there: false\n", m);
#ifdef ARRIVED_FROM_ANYONE
        if :: open == m -> give_to(C, true) :: else fi;
#endif
#ifdef ARRIVED_WITHOUT_VOUCHER
        if :: m > attempts -> give_to(C, true) :: else fi;
#endif
        skip
    }
    :: d_step { OF_THIS_EPOCH && epoch < EPOCHS ->
        printf("server: hears from C that attempt %d left: false\n", m);
#ifdef LEFT_FROM_ANYONE
        outdate(A);
        outdate(B);
        give_to(TARGET, true);
        arrival = m;
#endif
        skip
    }
    :: d_step { open == m ->
        printf("server: hears from C that attempt %d failed: false\n", m);
#ifdef FAILED_FROM_ANYONE
        outdate(A);
        outdate(B);
        open = 0;
#endif
        skip
    }
#endif
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
    node[n].answer.attempt = 0;
    node[n].answer.arrival = 0;
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
    printf("%c: the source goes on\n", NAME(n));
    begin_to_run(n)
}

/* A whole copy begins to run. */
inline copy_runs(n) {
    R1 = !stale[node[n].tag];
    assert(R1);
    begin_to_run(n)
}

/* What the inventory says of migrations. An attempt that is not known (the snapshot was lost, or the order is new) is
 * undecided from now on. */
inline hear_of_migrations(n) {
    if
    :: node[n].answer.attempt > node[n].known && node[n].held > 0 ->
        node[n].known = node[n].answer.attempt;
        node[n].moving = node[n].answer.attempt
    :: else
    fi;
    if
    :: node[n].held == 0 && node[n].job == idle -> node[n].moving = 0
    :: else
    fi;
    if
    :: node[n].answer.release > 0 || node[n].held > 0 -> node[n].left = 0
    :: else
    fi;
    node[n].arrival = node[n].answer.arrival;
    if
    :: node[n].answer.census && (node[n].process == incoming || node[n].process == arrived) -> end_process(n)
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
    hear_of_migrations(n);
#endif
    forget_answer(n)
}

#ifdef NO_SETTLING
#define QUIET(n) (node[n].process == nothing)
#else
#define QUIET(n) (node[n].process == nothing && !node[n].creating)
#endif

#ifdef LEFT_WITHOUT_A_LOOK
#define KEPT(n) (node[n].process != nothing)
#else
#define KEPT(n) (!node[n].undefined || node[n].attempt != node[n].moving)
#endif
#ifdef HANDOVER_TOO_EARLY
#define HANDS_OVER(n) (node[n].moving > 0 -> node[n].moving : node[n].left)
#else
#define HANDS_OVER(n) node[n].left
#endif
#ifdef ANY_COPY_IS_THE_VM
#define IS_THE_VM(n) true
#else
#define IS_THE_VM(n) (node[n].arrival == node[n].tag)
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
        node[n].known = 0;
        node[n].left = 0;
        node[n].arrival = 0;
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
#ifdef WITHOUT_SERVER
    :: d_step { node[n].up && node[n].held > 0 && !DRAINED(n) && !UNDECIDED(n) && node[n].job == idle && RUNS(n) &&
                attempts < ATTEMPTS && open == 0 ->
        attempts++;
        printf("%c: chime-agent orders attempt %d, epoch %d\n", NAME(n), attempts, node[n].held);
        begun_in[attempts] = node[n].held;
        source[attempts] = n;
        node[n].moving = attempts
    }
#endif
    /* The attempt was recorded with the order, before it begins. */
    :: d_step { node[n].up && UNDECIDED(n) && !begun[node[n].moving] && node[n].job == idle && RUNS(n) ->
        printf("%c: agent begins attempt %d\n", NAME(n), node[n].moving);
        begun[node[n].moving] = true;
        node[n].attempt = node[n].moving;
        node[n].undefined = false;
        node[n].job = copying
    }
    /* It is decided by what is there, when libvirt is not busy with it any more. */
    :: d_step { node[n].up && UNDECIDED(n) && node[n].job == idle && KEPT(n) ->
        printf("%c: agent sees that attempt %d is over and the VM is here: it failed\n", NAME(n), node[n].moving);
        said_failed[node[n].moving] = true;
        begun[node[n].moving] = true;
        node[n].moving = 0;
        if :: node[n].process == paused -> resume(n) :: else fi
    }
    :: d_step { node[n].up && UNDECIDED(n) && node[n].job == idle && !KEPT(n) && node[n].process == nothing ->
        printf("%c: agent sees that the VM is gone: it left by attempt %d\n", NAME(n), node[n].moving);
        node[n].left = node[n].moving;
        node[n].moving = 0;
#ifndef LEFT_IS_NO_RELEASE
        node[n].tombstone = node[n].held;
        node[n].held = 0
#endif
    }
    :: d_step { node[n].up && node[n].left > 0 && !said_left[node[n].left] ->
        printf("%c: agent says that the VM left by attempt %d\n", NAME(n), node[n].left);
        said_left[node[n].left] = true
    }
    :: d_step { node[n].up && HANDS_OVER(n) > 0 && node[OTHER].up && node[OTHER].handover == 0 ->
        printf("%c -> %c: agent hands over, attempt %d\n", NAME(n), NAME(OTHER), HANDS_OVER(n));
        node[OTHER].handover = HANDS_OVER(n)
    }
    /* As the target. */
    :: d_step { node[n].up && MAY_START(n) && node[n].process == arrived && IS_THE_VM(n) ->
        printf("%c: agent lets the copy of attempt %d run\n", NAME(n), node[n].tag);
        copy_runs(n)
    }
    :: d_step { node[n].up && node[n].held > 0 && node[n].process == arrived && !IS_THE_VM(n) ->
        printf("%c: agent ends the copy of attempt %d, which is not the VM\n", NAME(n), node[n].tag);
        end_process(n)
    }
    :: d_step { node[n].up && RUNS(n) && node[n].tag > 0 && !said_runs[node[n].tag] ->
        printf("%c: agent says that the copy of attempt %d runs\n", NAME(n), node[n].tag);
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
        node[n].handover = 0
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
        node[n].process = paused;
        node[OTHER].process = arrived;
        node[n].job = handing
    }
    :: d_step { node[n].job == handing && node[n].process == paused && node[OTHER].up ->
        printf("%c: hears that the copy is whole: the source is gone\n", NAME(n));
        node[n].job = idle;
        node[n].undefined = true;
        end_process(n)
    }
    :: d_step { node[n].job != idle && node[n].process != nothing ->
        printf("%c: the migration ends, or its last answer is lost: libvirt lets the source go on\n", NAME(n));
        node[n].job = idle;
        if :: node[n].process == paused -> resume(n) :: else fi
    }
    :: d_step { node[n].job != idle ->
        printf("%c: the migration ends, or its last answer is lost: the source stays as it is\n", NAME(n));
        node[n].job = idle
    }
    /* As the target. */
    :: d_step { ARRIVES(n) ->
        printf("%c: libvirt lets the copy of attempt %d run\n", NAME(n), node[n].tag);
        node[n].handover = 0;
        copy_runs(n)
    }
    :: d_step { node[n].handover > 0 && !ARRIVES(n) ->
        printf("%c: libvirt finds no copy to let run\n", NAME(n));
        node[n].handover = 0
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
