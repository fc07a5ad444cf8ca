/* Time runs forward only: what Chime's protocol of ownership does when state goes back, and when there are two of what
 * must be one. ownership.pml looks at messages and crashes; here a message is a step, and what comes late came not.
 *
 * One VM, two nodes, and a node C of which no more is known than that it runs the VM from when it is given it.
 *
 *   person(s)    what people do about server s, its database and its recovery
 *   table(s, n)  what server s does about node n; a step is one committed turn
 *   link(n, s)   what agent n and server s say to each other
 *   host(n)      the node: power, the process, the agent's state put back
 *
 * Macros that add something: READDED (nodes are removed and added again), OLD_STATE (an agent's state is put back),
 * OLD_DATABASE (the server's, by cp or by `chimed restore`), TWO_SERVERS (the second one has a copy of the database,
 * the agents flip), CHANGES (revisions rise for other reasons too), LIAR (C is registered, and says anything).
 * HOLD_AT_START, UNHEARD and WORD are about premises, see KNOWS and NO_WORD. The other macros are defects: run.py names
 * them, and checks that each is found. README.md says what is left out.
 */

#ifndef MOVES
#define MOVES 3          /* epochs in each generation */
#endif
#ifndef REVISIONS
#define REVISIONS 5      /* in each history */
#endif
#ifndef NAMES
#define NAMES 3          /* histories */
#endif
#ifndef GENERATIONS
#define GENERATIONS 3
#endif

#define A 0
#define B 1
#define C 2
#define OTHER (1 - n)
#define NAME(n) ('A' + n)

#if defined(OLD_DATABASE) || defined(TWO_SERVERS)
#define BACK_IN_TIME     /* databases may be older than what agents have seen */
#endif
#ifdef TWO_SERVERS
#ifndef WORD
#define NO_WORD          /* a host that is off may boot in the other server's arms: no word about it holds */
#endif
#define SERVERS 2
#else
#define SERVERS 1
#endif
#ifdef OLD_STATE
#define STATES 4
#else
#define STATES 2
#endif
#define COPY 1           /* the copy of the database; the second server begins with it */
#define SAVED(n) (n + 2) /* the copy of an agent's state, among the states */

/* --- state -------------------------------------------------------------------------------------------------------- */

typedef Row {            /* of a node, in a database */
    bool removed;
    bool drained;
    bool proven;         /* evidence, by its agent or by a person, that it runs nothing */
    byte release;        /* "you do not own it any more, up to this epoch"; 0: none */
    byte revision = 1;   /* of the node's inventory */
    byte changed = 1;    /* ... in which the assignment or the release came */
    byte given = 1;      /* the highest that the node was given: committed before it is sent */
    bool waiting;        /* a recovery waits for its report */
}

typedef Database {
    byte owner = A;
    byte epoch = 1;
    byte generation = 1;
    byte history = 1;    /* its random name */
    bool behind;
    byte heard;          /* the highest generation that it was told of */
    Row row[2];
}

typedef Server {
    bool on;
#ifdef HOLD_AT_START
    bool heard[2];       /* has said hello in this life of the server */
#endif
#ifdef START_OF_LIFE
    byte start[2];       /* the node's revision when this life began */
#endif
    bool told;           /* for the premise alone: somebody has told it that it is behind */
}

typedef Snapshot {        /* an agent's snapshot */
    byte held;           /* epoch of the assignment; 0: none */
    byte tombstone;      /* released up to this epoch */
    bool unnamed;        /* the newest full inventory did not name what it holds */
    bool drained;
    bool hold;
    bool confirmed;      /* an inventory was applied in this boot */
    byte generation = 1; /* the point: of the newest inventory that was applied. 0: none was */
    byte history = 1;
    byte revision = 1;
}

#ifdef BACK_IN_TIME
Database db[2];
#else
Database db[1];
#endif
Server server[SERVERS];
Snapshot state[STATES];
byte session[2] = 1;     /* s + 1: the newest inventory came from server s, in its present life */
bool up[2] = true;
bool runs[2];
bool older[2];           /* the state's serial is lower than the one that was noted in this boot */
bool over;               /* C runs the VM: nothing more is looked at */
#ifndef TWO_SERVERS
byte ran[2];             /* the epoch of the last start on the node, for S4 alone */
#endif
byte names = 1;          /* of histories, given so far */
#ifdef BACK_IN_TIME
bool copied;             /* a copy of a database was made */
byte above;              /* within a step: the generation that a recovery has to be above */
#endif

/* --- the guard ---------------------------------------------------------------------------------------------------- */

#ifdef NO_SERIAL
#define IS_OLDER(n) false
#else
#define IS_OLDER(n) older[n]
#endif
#ifdef UNNAMED_IS_STARTED
#define IS_NAMED(n) true
#else
#define IS_NAMED(n) (!state[n].unnamed)
#endif
#ifdef GUARD_WITHOUT_HOLD
#define IS_HELD(n) false
#else
#define IS_HELD(n) state[n].hold
#endif
#ifdef NO_BOOT_CHECK
#define CONFIRMED(n) true
#else
#define CONFIRMED(n) state[n].confirmed
#endif

#define MAY_START(n) (state[n].held > state[n].tombstone && CONFIRMED(n) && !state[n].drained && !IS_HELD(n) && \
                      IS_NAMED(n) && !IS_OLDER(n))

/* --- the properties ----------------------------------------------------------------------------------------------- */

bool S1 = true;  /* at most one process, over all nodes */
bool S2 = true;  /* no assignment to another node while any other may run the VM, nor without evidence */
bool S4 = true;  /* epochs never fall, on any node; none is given that one of an older generation reached */
bool S7 = true;  /* no word of C moves or blocks the VM */

/* It runs, or can come to run without a word of a server. */
#define MAY_RUN(n) (runs[n] || (up[n] && MAY_START(n)))

/* --- what is older, forked, ahead --------------------------------------------------------------------------------- */

#define FORKED(s, n) (state[n].generation == db[s].generation && state[n].history != db[s].history)
#define SAME_LINE(s, n) (state[n].generation == db[s].generation && state[n].history == db[s].history)

/* The agent refuses it. */
#define LOWER_GENERATION(s, n) (db[s].generation < state[n].generation)
#define LOWER_REVISION(s, n) (state[n].generation == db[s].generation && db[s].row[n].revision < state[n].revision)
#ifdef OLDER_IS_BELIEVED
#define REFUSES(n, s) false
#else
#define REFUSES(n, s) (LOWER_GENERATION(s, n) || FORKED(s, n) || LOWER_REVISION(s, n))
#endif

/* The agent's point, which bears the server's seal, shows that the database is not what it was, or not what another is:
 * by this database the node was never given that much. */
#define AHEAD(s, n) (LOWER_GENERATION(s, n) || (state[n].generation == db[s].generation && \
                     (state[n].history != db[s].history || state[n].revision > db[s].row[n].given)))
#ifdef NO_POINT
#define SEEN_AHEAD(s, n) false
#elif defined(NEWEST_REVISION_COMPARED)
#define SEEN_AHEAD(s, n) (LOWER_GENERATION(s, n) || FORKED(s, n) || LOWER_REVISION(s, n))
#elif defined(START_OF_LIFE)
#define SEEN_AHEAD(s, n) (LOWER_GENERATION(s, n) || FORKED(s, n) || \
                          (session[n] == s + 1 -> LOWER_REVISION(s, n) : \
                           SAME_LINE(s, n) && state[n].revision > server[s].start[n]))
#else
#define SEEN_AHEAD(s, n) AHEAD(s, n)
#endif

#define RECOVERS(s) (db[s].row[A].waiting || db[s].row[B].waiting)
#ifdef HOLD_AT_START
#define PRESENT(s, n) (server[s].heard[n] || db[s].row[n].removed)
#define AT_START(s) (!PRESENT(s, A) || !PRESENT(s, B))
#else
#define AT_START(s) false
#endif
#ifdef BEHIND_HOLDS_NOTHING
#define HOLDS(s) (RECOVERS(s) || AT_START(s))
#else
#define HOLDS(s) (RECOVERS(s) || AT_START(s) || db[s].behind)
#endif

/* The premise. A server cannot know better than those that it has heard: before it confirms a boot, or gives the VM to
 * another node, whoever could tell it that it is behind has told it. With HOLD_AT_START one server needs no such
 * premise: from its start it holds, until it has heard every node or a person has said that the node is off. */
#if defined(UNHEARD) || defined(HOLD_AT_START)
#define KNOWS(s, n) true
#elif defined(TWO_SERVERS)
#define KNOWS(s, n) (server[s].told || db[s].row[n].removed || !AHEAD(s, n))
#else
#define KNOWS(s, n) (server[s].told || db[s].row[n].removed || !AHEAD(s, n) || !up[n])
#endif

/* --- the server --------------------------------------------------------------------------------------------------- */

#define FIRST_EPOCH(s) ((db[s].generation - 1) * MOVES + 1)
#ifdef EPOCHS_DO_NOT_LEAP
#define NEXT_EPOCH(s) (db[s].epoch + 1)
#else
#define NEXT_EPOCH(s) (db[s].epoch + 1 > FIRST_EPOCH(s) -> db[s].epoch + 1 : FIRST_EPOCH(s))
#endif
#define HAS_EPOCHS(s) (db[s].epoch < db[s].generation * MOVES)
#define HAS_REVISIONS(s) (db[s].row[A].revision < REVISIONS && db[s].row[B].revision < REVISIONS)

#ifdef TWO_SERVERS
#define REACHED(s, n) false
#else
#define REACHED(s, n) (ran[n] >= db[s].epoch && ran[n] < FIRST_EPOCH(s))
#endif

inline next_epoch(s) {
    db[s].epoch = NEXT_EPOCH(s);
    S4 = !REACHED(s, A) && !REACHED(s, B);
    assert(S4)
}

inline bump(s, n) {
    db[s].row[n].revision++
}

inline told_of_the_vm(s, n) {
    bump(s, n);
#ifndef BACK_IN_TIME
    db[s].row[n].changed = db[s].row[n].revision
#endif
}

/* A process of the server begins: nobody is in session, and no point is of this life. */
inline begin_life(s) {
    server[s].on = true;
#ifdef HOLD_AT_START
    server[s].heard[A] = false;
    server[s].heard[B] = false;
#endif
#ifdef START_OF_LIFE
    server[s].start[A] = db[s].row[A].revision;
    server[s].start[B] = db[s].row[B].revision;
#endif
    if :: session[A] == s + 1 -> session[A] = 0 :: else fi;
    if :: session[B] == s + 1 -> session[B] = 0 :: else fi
}

#ifdef BACK_IN_TIME
inline copy_row(from, to, n) {
    db[to].row[n].removed = db[from].row[n].removed;
    db[to].row[n].release = db[from].row[n].release;
    db[to].row[n].revision = db[from].row[n].revision;
    db[to].row[n].given = db[from].row[n].given;
    db[to].row[n].waiting = db[from].row[n].waiting
}

inline copy_database(from, to) {
    db[to].owner = db[from].owner;
    db[to].epoch = db[from].epoch;
    db[to].generation = db[from].generation;
    db[to].history = db[from].history;
    db[to].behind = db[from].behind;
    db[to].heard = db[from].heard;
    copy_row(from, to, A);
    copy_row(from, to, B)
}

/* A new history, which waits for every node. Revisions are compared within a history alone: here they begin anew. */
inline begin_recovery(s) {
    db[s].generation = above + 1;
    db[s].row[A].revision = 1;
    db[s].row[B].revision = 1;
    db[s].row[A].given = 0;
    db[s].row[B].given = 0;
    names++;
    db[s].history = names;
    db[s].behind = false;
    db[s].heard = 0;
#ifndef RECOVERY_WAITS_FOR_NOBODY
    db[s].row[A].waiting = !db[s].row[A].removed;
    db[s].row[B].waiting = !db[s].row[B].removed;
#endif
    above = 0;
    server[s].told = false;
    begin_life(s)
}

/* In a generation above its own and the copy's. */
#define ABOVE(s) (db[s].generation > db[COPY].generation -> db[s].generation : db[COPY].generation)

#define HIGHEST(s) (db[s].heard > db[s].generation -> db[s].heard : db[s].generation)
#endif

/* A person's word that the host is off is true in that moment. */
#define OFF(n) (!up[n] && !runs[n])

#if defined(BACK_IN_TIME) || defined(LIAR)
proctype person(byte s) {
end:
    do
#ifdef BACK_IN_TIME
    :: d_step { !over && s == 0 && !copied ->
        printf("server %d: its database is copied\n", s);
        copied = true;
        copy_database(0, COPY)
    }
#ifdef OLD_DATABASE
    :: d_step { !over && server[s].on && copied ->
        printf("server %d: the copy is put back by cp\n", s);
        copy_database(COPY, s);
        server[s].told = false;
        begin_life(s)
    }
    :: d_step { !over && server[s].on && copied && db[s].generation < GENERATIONS &&
                db[COPY].generation < GENERATIONS && names < NAMES ->
        printf("server %d: chimed restore\n", s);
        above = ABOVE(s);
        copy_database(COPY, s);
        begin_recovery(s)
    }
#endif
#ifdef TWO_SERVERS
    :: d_step { !over && !server[s].on && copied ->
        printf("server %d: begins beside the other one, with the copy\n", s);
        begin_life(s)
    }
    :: d_step { !over && !server[s].on && copied && db[COPY].generation < GENERATIONS && names < NAMES ->
        printf("server %d: begins beside the other one, by chimed restore of the copy\n", s);
        above = db[s].generation;
        begin_recovery(s)
    }
#endif
#ifdef START_OF_LIFE
    :: d_step { !over && server[s].on ->
        printf("server %d: restarts\n", s);
        begin_life(s)
    }
#endif
    :: d_step { !over && server[s].on && db[s].behind && HIGHEST(s) < GENERATIONS && names < NAMES ->
        printf("server %d: every node is here, or a person says so: begins a recovery, generation %d\n", s,
               HIGHEST(s) + 1);
        above = HIGHEST(s);
        begin_recovery(s)
    }
#endif
#ifdef LIAR
    :: d_step { !over && server[s].on && RECOVERS(s) ->
        printf("server %d: C says that it runs the VM in a higher epoch, without its seal\n", s);
#ifdef UNSEALED_WORD_COUNTS
        S7 = false;
#endif
        assert(S7)
    }
    :: d_step { !over && server[s].on && !db[s].behind ->
        printf("server %d: C says that it has seen a higher generation, without its seal\n", s);
#ifdef UNSEALED_POINT_COUNTS
        db[s].behind = true;
        S7 = false;
#endif
        assert(S7)
    }
#endif
    od
}
#endif

#ifdef BACK_IN_TIME
#define PROVEN(s, n) true                /* ... in the same step */
#else
#define PROVEN(s, n) (db[s].row[n].drained && db[s].row[n].proven)
#endif

#define MOVABLE(s, n) (!over && server[s].on && !HOLDS(s) && KNOWS(s, A) && KNOWS(s, B) && db[s].owner == n && \
                       PROVEN(s, n) && HAS_EPOCHS(s) && HAS_REVISIONS(s))
#define CHANGEABLE(s, n) (!over && server[s].on && db[s].row[n].revision < REVISIONS)

/* What it says it says in its session: after the newest inventory. */
#define CURRENT(n, s) (!over && up[n] && server[s].on && !db[s].row[n].removed && SAME_LINE(s, n) && \
                       session[n] == s + 1 && state[n].revision == db[s].row[n].revision)

#define REPORTED(n, s) (CURRENT(n, s) && state[n].held <= db[s].epoch)

inline give_to_other(s, n) {
    S2 = !MAY_RUN(n);
    assert(S2);
    db[s].row[n].release = db[s].epoch;
    next_epoch(s);
    db[s].owner = OTHER;
    told_of_the_vm(s, A);
    told_of_the_vm(s, B)
}

inline give_to_third() {
    S2 = !MAY_RUN(A) && !MAY_RUN(B);
    assert(S2);
    over = true
}

#ifdef BACK_IN_TIME
inline carry_out(n, s) {
    runs[n] = false;
    if :: db[s].epoch > state[n].tombstone -> state[n].tombstone = db[s].epoch :: else fi;
    if :: state[n].held <= state[n].tombstone -> state[n].held = 0 :: else fi
}

inline heard_of_it(n, s) {
    db[s].row[n].release = 0;
    db[s].row[n].given = db[s].row[n].revision;
    state[n].revision = db[s].row[n].revision
}
#endif

proctype table(byte s, n) {
end:
    do
#ifndef BACK_IN_TIME
    :: d_step { CHANGEABLE(s, n) && !db[s].row[n].removed && !db[s].row[n].drained ->
        printf("server %d: drains %c\n", s, NAME(n));
        db[s].row[n].drained = true;
        db[s].row[n].proven = false;
        bump(s, n)
    }
    :: d_step { CHANGEABLE(s, n) && db[s].row[n].drained ->
        printf("server %d: enables %c\n", s, NAME(n));
        db[s].row[n].drained = false;
        db[s].row[n].proven = false;
        bump(s, n)
    }
    :: d_step { !over && server[s].on && !HOLDS(s) && db[s].row[n].drained && !db[s].row[n].proven && OFF(n) ->
        printf("server %d: a person attests that %c is off: evidence\n", s, NAME(n));
        db[s].row[n].proven = true
    }
    :: d_step { MOVABLE(s, n) && !db[s].row[OTHER].removed ->
        printf("server %d: rebuilds the VM: %c -> %c, epoch %d\n", s, NAME(n), NAME(OTHER), NEXT_EPOCH(s));
        give_to_other(s, n)
    }
    :: d_step { MOVABLE(s, n) ->
        printf("server %d: rebuilds the VM: %c -> C\n", s, NAME(n));
        give_to_third()
    }
#else
    /* In one step: whether a drain may be believed is ownership.pml's. The agent has said before what it holds. */
    :: d_step { MOVABLE(s, n) && REPORTED(n, s) && !db[s].row[OTHER].removed ->
        printf("server %d: drains %c, whose agent proves it: %c -> %c, epoch %d\n", s, NAME(n), NAME(n),
               NAME(OTHER), NEXT_EPOCH(s));
        carry_out(n, s);
        give_to_other(s, n);
        heard_of_it(n, s)
    }
    :: d_step { MOVABLE(s, n) && REPORTED(n, s) ->
        printf("server %d: drains %c, whose agent proves it: %c -> C\n", s, NAME(n), NAME(n));
        carry_out(n, s);
        give_to_third()
    }
#ifndef NO_WORD
    :: d_step { MOVABLE(s, n) && OFF(n) && !db[s].row[OTHER].removed ->
        printf("server %d: a person attests that %c is off: %c -> %c, epoch %d\n", s, NAME(n), NAME(n),
               NAME(OTHER), NEXT_EPOCH(s));
        give_to_other(s, n)
    }
    :: d_step { MOVABLE(s, n) && OFF(n) ->
        printf("server %d: a person attests that %c is off: %c -> C\n", s, NAME(n), NAME(n));
        give_to_third()
    }
#endif
#ifdef CHANGES
    :: d_step { CHANGEABLE(s, n) ->
        printf("server %d: something else about %c changes\n", s, NAME(n));
        bump(s, n)
    }
#endif
#endif
#ifdef READDED
    :: d_step { !over && !HOLDS(s) && db[s].owner == OTHER && db[s].row[n].drained && db[s].row[n].proven ->
        printf("server %d: node remove %c\n", s, NAME(n));
        db[s].row[n].removed = true;
        db[s].row[n].drained = false;
        db[s].row[n].proven = false;
#ifdef RELEASES_DIE_WITH_THE_NODE
        db[s].row[n].release = 0;
#endif
        session[n] = 0
    }
    :: d_step { CHANGEABLE(s, n) && db[s].row[n].removed ->
        printf("server %d: node add %c\n", s, NAME(n));
        db[s].row[n].removed = false;
#ifdef REVISION_BEGINS_ANEW
        db[s].row[n].revision = 0;
        db[s].row[n].changed = 1;
#endif
        bump(s, n)
    }
#endif
#if defined(BACK_IN_TIME) && !defined(NO_WORD)
    :: d_step { !over && server[s].on && db[s].row[n].waiting && OFF(n) ->
        printf("server %d: a person attests that %c, which is waited for, is off\n", s, NAME(n));
        db[s].row[n].waiting = false
    }
#endif
#ifdef HOLD_AT_START
    :: d_step { !over && server[s].on && !PRESENT(s, n) && OFF(n) ->
        printf("server %d: a person attests that %c, which was not heard, is off\n", s, NAME(n));
        server[s].heard[n] = true
    }
#endif
    od
}

/* --- agent and server --------------------------------------------------------------------------------------------- */

inline hello(n, s) {
#ifdef HOLD_AT_START
    server[s].heard[n] = true;
#endif
    if
    :: AHEAD(s, n) -> server[s].told = true
    :: else
    fi;
    if
    :: SEEN_AHEAD(s, n) ->
        printf("server %d: hears from %c that it is behind\n", s, NAME(n));
        db[s].behind = true;
        if :: state[n].generation > db[s].heard -> db[s].heard = state[n].generation :: else fi
    :: else
    fi
}

/* The first inventory of a boot, of a history and after older state is a full one. */
#ifdef DELTA_AFTER_A_BOOT
#define FULL(n, s) (!SAME_LINE(s, n))
#else
#define FULL(n, s) (!state[n].confirmed || older[n] || !SAME_LINE(s, n))
#endif
#ifdef BACK_IN_TIME
#define TELLS(n, s) true                 /* more than it has to */
#else
#define TELLS(n, s) (FULL(n, s) || db[s].row[n].changed > state[n].revision)
#endif

/* Only a release takes the VM away; an epoch never falls; a release is never forgotten. */
inline apply(n, s) {
    if
    :: TELLS(n, s) && db[s].row[n].release > state[n].tombstone -> state[n].tombstone = db[s].row[n].release
    :: else
    fi;
    if
    :: TELLS(n, s) && db[s].owner == n -> state[n].unnamed = false
    :: FULL(n, s) && db[s].owner != n -> state[n].unnamed = true
    :: else
    fi;
    if
    :: TELLS(n, s) && db[s].owner == n && db[s].epoch > state[n].held -> state[n].held = db[s].epoch
    :: else
    fi;
    if
    :: state[n].held <= state[n].tombstone -> state[n].held = 0; state[n].unnamed = false
    :: else
    fi;
    state[n].hold = HOLDS(s);
    if
    :: HOLDS(s)
    :: else -> state[n].drained = db[s].row[n].drained
    fi;
    state[n].confirmed = true;
    older[n] = false;
    state[n].generation = db[s].generation;
    state[n].history = db[s].history;
    state[n].revision = db[s].row[n].revision;
    db[s].row[n].given = (db[s].row[n].given > db[s].row[n].revision -> db[s].row[n].given : db[s].row[n].revision);
    session[n] = s + 1
}

#define OF_THIS_GENERATION(n, s) (state[n].held >= FIRST_EPOCH(s))

proctype link(byte n, s) {
end:
    do
    :: d_step { !over && up[n] && server[s].on && !db[s].row[n].removed && KNOWS(s, OTHER) ->
        hello(n, s);
        if
        :: REFUSES(n, s) -> printf("%c: agent refuses the inventory of server %d\n", NAME(n), s)
        :: else ->
            printf("%c: agent applies the inventory of server %d: %c owns it in epoch %d, hold %d\n", NAME(n), s,
                   NAME(db[s].owner), db[s].epoch, HOLDS(s));
            apply(n, s)
        fi
    }
#ifndef BACK_IN_TIME
    :: d_step { CURRENT(n, s) && !HOLDS(s) && db[s].row[n].drained && !db[s].row[n].proven && state[n].drained &&
                !runs[n] ->
        printf("%c: agent proves the drain to server %d\n", NAME(n), s);
        db[s].row[n].proven = true
    }
#endif
    :: d_step { CURRENT(n, s) && db[s].row[n].release > 0 && state[n].tombstone >= db[s].row[n].release &&
                state[n].held == 0 && !runs[n] ->
        printf("%c: agent confirms to server %d: epoch %d is gone\n", NAME(n), s, db[s].row[n].release);
        db[s].row[n].release = 0
    }
#ifdef BACK_IN_TIME
    /* After a restore each says what it holds. Who holds the highest epoch is the owner; whoever is not is waited for
     * until it has ended what it runs. */
    :: d_step { CURRENT(n, s) && db[s].row[n].waiting && HAS_REVISIONS(s) ->
        printf("%c: agent reports epoch %d to server %d, which recovers\n", NAME(n), state[n].held, s);
#ifndef HOLDER_IS_NOT_FOLLOWED
        if
        :: state[n].held > db[s].epoch ->
            if :: db[s].owner != n -> db[s].row[OTHER].release = db[s].epoch :: else fi;
            db[s].owner = n;
            db[s].epoch = state[n].held;
#ifndef LOSER_IS_NOT_ASKED
            db[s].row[OTHER].waiting = !db[s].row[OTHER].removed;
#endif
            told_of_the_vm(s, A);
            told_of_the_vm(s, B)
        :: state[n].held > 0 && db[s].owner != n && db[s].row[n].release < state[n].held ->
            db[s].row[n].release = state[n].held;
            told_of_the_vm(s, n)
        :: else
        fi;
#endif
#if defined(LOSER_IS_NOT_ASKED) || defined(HOLDER_IS_NOT_FOLLOWED)
        db[s].row[n].waiting = false
#else
        db[s].row[n].waiting = runs[n] && db[s].owner != n
#endif
    }
    /* Later nobody is followed. */
    :: d_step { CURRENT(n, s) && !HOLDS(s) && db[s].owner != n && state[n].held > 0 &&
                db[s].row[n].release < state[n].held && CHANGEABLE(s, n) && !OF_THIS_GENERATION(n, s) ->
        printf("server %d: hears from %c of epoch %d, which is stale: a release\n", s, NAME(n), state[n].held);
        db[s].row[n].release = state[n].held;
        told_of_the_vm(s, n)
    }
    /* The owner holds a higher epoch of an older generation, or has released this one in another history. */
    :: d_step { CURRENT(n, s) && !HOLDS(s) && db[s].owner == n && CHANGEABLE(s, n) && HAS_EPOCHS(s) &&
                (state[n].held > db[s].epoch || state[n].tombstone >= db[s].epoch) && !OF_THIS_GENERATION(n, s) ->
        printf("server %d: its owner %c does not follow epoch %d: a new one\n", s, NAME(n), db[s].epoch);
        next_epoch(s);
        told_of_the_vm(s, n)
    }
#endif
    od
}

/* --- the node ----------------------------------------------------------------------------------------------------- */

inline copy_state(from, to) {
    state[to].held = state[from].held;
    state[to].tombstone = state[from].tombstone;
    state[to].unnamed = state[from].unnamed;
    state[to].drained = state[from].drained;
    state[to].hold = state[from].hold;
    state[to].confirmed = state[from].confirmed;
    state[to].generation = state[from].generation;
    state[to].history = state[from].history;
    state[to].revision = state[from].revision
}

proctype host(byte n) {
end:
    do
    :: d_step { !over && up[n] ->
        printf("%c: power lost\n", NAME(n));
        up[n] = false;
        runs[n] = false;
        older[n] = false;
#ifdef OLD_STATE
        state[SAVED(n)].confirmed = false;
#endif
        state[n].confirmed = false
    }
    :: d_step { !over && !up[n] ->
        printf("%c: boots\n", NAME(n));
        up[n] = true
    }
    :: d_step { !over && up[n] && !runs[n] && MAY_START(n) ->
        printf("%c: starts the VM, epoch %d\n", NAME(n), state[n].held);
        S1 = !runs[OTHER];
        assert(S1);
#ifndef TWO_SERVERS
        S4 = state[n].held >= ran[n];
        assert(S4);
        ran[n] = state[n].held;
#endif
        runs[n] = true
    }
    :: d_step { !over && runs[n] &&
                ((state[n].drained && !state[n].hold) || (state[n].held == 0 && state[n].tombstone > 0)) ->
        printf("%c: agent ends the process: drained or released\n", NAME(n));
        runs[n] = false
    }
#ifdef OLD_STATE
    :: d_step { !over ->
        printf("%c: the agent's state is copied\n", NAME(n));
        copy_state(n, SAVED(n))
    }
    :: d_step { !over ->
        printf("%c: the copy of the agent's state is put back\n", NAME(n));
        copy_state(SAVED(n), n);
        older[n] = up[n];
        session[n] = 0
    }
#endif
#ifdef READDED
    :: d_step { !over && up[n] && db[0].row[n].removed && !runs[n] ->
        printf("%c: agentd join puts the state aside\n", NAME(n));
        state[n].held = 0;
        state[n].tombstone = 0;
        state[n].unnamed = false;
        state[n].drained = false;
        state[n].hold = false;
        state[n].confirmed = false;
        state[n].generation = 0;
        state[n].history = 0;
        state[n].revision = 0;
        session[n] = 0
    }
#endif
    od
}

init {
    d_step {
        /* A owns the VM, and both have applied what the first server says. */
        server[0].on = true;
#ifdef HOLD_AT_START
        server[0].heard[A] = true;
        server[0].heard[B] = true;
#endif
#ifdef START_OF_LIFE
        server[0].start[A] = 1;
        server[0].start[B] = 1;
#endif
        state[A].held = 1;
        state[A].confirmed = true;
        state[B].confirmed = true
    };
    atomic {
        run host(A); run host(B);
        run table(0, A); run table(0, B);
        run link(A, 0); run link(B, 0);
#if defined(BACK_IN_TIME) || defined(LIAR)
        run person(0);
#endif
#ifdef TWO_SERVERS
        run table(1, A); run table(1, B);
        run link(A, 1); run link(B, 1);
        run person(1)
#endif
    }
}
