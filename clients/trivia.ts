// A client for Trivia, made from schema.yaml by `python trivia.py client typescript`.
// Do not edit it: change schema.yaml and make it again.
//
// It needs `fetch` and `WebSocket`, as browsers, React Native, Node 22, Deno and Bun have them.
//
//   const trivia = new Trivia("https://quiz.example.org", { token, onToken: keep });
//   if (!trivia.token) await trivia.guest({ secret });
//   const play = trivia.play("random");
//   play.on("question", (question) => play.answer(0));
//   play.on("end", (end) => console.log(end.ranking));

/** The version of the protocol. The server refuses a client of another version. */
export const PROTOCOL = "trivia.v1";

// ---- types ---------------------------------------------------------------------------------------

export interface NewUser {
  /** The name that other players see. */
  username: string;
  /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
  email: string;
  /** The server stores only its argon2id hash. */
  password: string;
  /** The http or https address of a picture. Default: "". */
  avatar?: string;
  /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
  zone?: string;
}

export interface Guest {
  /** A random text that the device makes once and keeps as a password. */
  secret: string;
}

export interface Recovery {
  login: string;
}

export interface Reset {
  login: string;
  /** The six digits of the mail. */
  code: string;
  /** The server stores only its argon2id hash. */
  password: string;
}

export interface Confirmation {
  /** The six digits of the mail. */
  code: string;
}

export interface ConfirmationMail {
  /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
  email?: string;
}

export interface Upgrade {
  /** The name that other players see. */
  username?: string;
  /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
  email: string;
  /** The server stores only its argon2id hash. */
  password: string;
  /** The http or https address of a picture. Default: "". */
  avatar?: string;
  /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
  zone?: string;
}

export interface UserChanges {
  /** The name that other players see. */
  username?: string;
  /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
  email?: string;
  /** The http or https address of a picture. Default: "". */
  avatar?: string;
  /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
  zone?: string;
  /** The present password. A new username or email takes it. */
  password?: string;
}

export interface Login {
  /** A username or email. */
  login?: string;
  /** Can be given instead of login. */
  username?: string;
  /** Can be given instead of login. */
  email?: string;
  password: string;
}

export interface PasswordChange {
  /** The present password. */
  password: string;
  /** The server stores only its argon2id hash. */
  new_password: string;
}

export interface PasswordConfirmation {
  /** Needed, unless the account has none: that of a guest, or of an identity. */
  password?: string;
}

export interface Report {
  /** A username. */
  player?: string;
  /** Instead of a player: the text of a question as it was shown, or its id. */
  question?: string;
  /**
   * Of a player: name, picture, message, cheating; of a question: wrong, ambiguous, outdated,
   * offensive.
   */
  reason: "name" | "picture" | "message" | "cheating" | "wrong" | "ambiguous" | "outdated" | "offensive";
  /** A game of the caller, running or not; the operator sees its rounds. */
  game?: string;
  /** A note to the operator. */
  text?: string;
}

export interface ChallengeQueue {
  /** A queue with `match: challenge`. */
  queue: string;
}

export interface User {
  /** The name that other players see. */
  username: string;
  email: string | null;
  /** The http or https address of a picture. */
  avatar: string;
  /** Games in which the player alone was first. */
  wins: number;
  /** Games that ended and count. */
  games: number;
  /** Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number. */
  rating: number;
  /** Days in a row with a daily game. */
  streak: number;
  /** Points in daily games. */
  daily_points: number;
  /** The time zone of the player's phone. Their `streak` counts days by it. */
  zone: string;
  /** Seconds since 1970. */
  created_at: number;
  email_confirmed: boolean;
  /** Present while the user is a guest. */
  guest?: true;
  /** Present while the rating is uncertain. */
  provisional?: true;
}

export interface Player {
  /** The name that other players see. */
  username: string;
  /** The http or https address of a picture. */
  avatar: string;
  /** Games in which the player alone was first. */
  wins: number;
  /** Games that ended and count. */
  games: number;
  /** Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number. */
  rating: number;
  /** Days in a row with a daily game. */
  streak: number;
  /** Points in daily games. */
  daily_points: number;
  /** Present while the user is a guest. */
  guest?: true;
  /** Present while the rating is uncertain. */
  provisional?: true;
  /** Present if the player is a bot. */
  bot?: true;
}

export interface Session {
  token: string;
  /** Seconds since 1970; each day of use moves it forward. */
  expires_at: number;
  user: User;
}

export interface Upgraded {
  user: User;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  /** Stable; for programs. A later version may add codes. */
  code: ErrorCode;
  /** What is wrong, by field. */
  errors?: Record<string, Array<string>>;
  /** A token for POST /auth/merge. */
  merge?: string;
  guest?: Player;
  account?: Player;
  /** End of a ban, in ms since 1970; 0: it has none. */
  until_ms?: number;
  /** Of a ban. */
  reason?: string;
  /** Where a new version of the app is. */
  store?: string;
}

export interface GameSummary {
  id: string;
  queue: string;
  /** Milliseconds since 1970. */
  ended_ms: number;
  reason: "finished" | "forfeit" | "abandoned" | "stopped" | "void";
  ranking: Array<{
    player: string;
    score: number;
    rank: number;
    rating?: number;
    rating_change?: number;
    /** Present while the rating is uncertain. */
    provisional?: true;
    /** Present if it is a bot. */
    bot?: true;
    counts?: boolean;
  }>;
}

export interface GameRecord {
  id: string;
  queue: string;
  /** Milliseconds since 1970. */
  ended_ms: number;
  reason: "finished" | "forfeit" | "abandoned" | "stopped" | "void";
  ranking: Array<{
    player: string;
    score: number;
    rank: number;
    rating?: number;
    rating_change?: number;
    /** Present while the rating is uncertain. */
    provisional?: true;
    /** Present if it is a bot. */
    bot?: true;
    counts?: boolean;
  }>;
  rounds: Array<{
    text: string;
    choices: Array<string>;
    category: string;
    difficulty: string;
    correct: number;
    answers: Record<string, {
      choice: number;
      ms: number;
      points: number;
    }>;
  }>;
}

export interface GameList {
  games: Array<GameSummary>;
  cursor: string | null;
}

export interface Leaderboard {
  leaderboard: string;
  period: string | null;
  total: number;
  entries: Array<{
    rank: number;
    username: string;
    value: number;
    /** Present while the rating is uncertain. */
    provisional?: true;
  }>;
}

export interface QueueList {
  queues: Array<{
    description?: string;
    players: {
      min: number;
      max: number;
    };
    match?: "fifo" | "rating" | "room" | "challenge";
    days?: number;
    late_join?: boolean;
    rematch_seconds?: number;
    draw?: "daily";
    attempts?: number;
    bots?: {
      after_seconds: number;
      skill: number | string;
    };
    window?: number;
    widen?: number;
    fill_seconds?: number;
    wait_seconds?: number;
    rounds?: number;
    start_seconds?: number;
    answer_seconds?: number;
    reveal_seconds?: number;
    total_seconds?: number;
    lives?: number;
    seat_seconds?: number;
    rated?: boolean;
    scoring?: {
      correct: number;
      speed: number;
    };
    on_exit?: "forfeit" | "continue";
    categories?: Array<string>;
    difficulties?: Array<"easy" | "medium" | "hard">;
    name: string;
    waiting: number;
    playing: number;
  }>;
}

export interface Rules {
  players?: {
    min: number;
    max: number;
  };
  match?: "fifo" | "rating" | "room" | "challenge";
  days?: number;
  late_join?: boolean;
  rematch_seconds?: number;
  draw?: "daily";
  attempts?: number;
  bots?: {
    after_seconds: number;
    skill: number | string;
  };
  window?: number;
  widen?: number;
  fill_seconds?: number;
  wait_seconds?: number;
  rounds?: number;
  start_seconds?: number;
  answer_seconds?: number;
  reveal_seconds?: number;
  total_seconds?: number;
  lives?: number;
  seat_seconds?: number;
  rated?: boolean;
  scoring?: {
    correct: number;
    speed: number;
  };
  on_exit?: "forfeit" | "continue";
  categories?: Array<string>;
  difficulties?: Array<"easy" | "medium" | "hard">;
}

export interface Room {
  queue: string;
  settings: Rules;
  code: string;
  host: string;
  players: Array<Player>;
  connected: Array<string>;
  locked: boolean;
  state: "waiting" | "playing";
}

export interface ReportReceipt {
  id: string;
}

export interface BlockList {
  blocks: Array<{
    username: string;
    /** Seconds since 1970. */
    blocked_at: number;
  }>;
}

export interface NewChallenge {
  code: string;
  /** Seconds since 1970. */
  expires_at: number;
}

export interface Challenge {
  code: string;
  queue: string;
  owner: string;
  /** Seconds since 1970. */
  expires_at: number;
  state: "open" | "finished";
  players: Array<{
    player: string;
    state: "playing" | "finished";
    score?: number;
    /** Among those who have finished; equals share it. */
    rank?: number;
  }>;
  /** Present if the caller has played it. */
  rounds?: Array<{
    text: string;
    choices: Array<string>;
    category: string;
    difficulty: string;
    correct: number;
    answers: Record<string, {
      choice: number;
      ms: number;
      points: number;
    }>;
  }>;
}

export interface ChallengeList {
  challenges: Array<Challenge>;
}

export interface Export {
  user: User;
  sessions: Array<{
    /** Seconds since 1970. */
    expires_at: number;
  }>;
  ban: {
    until_ms: number;
    reason: string;
  } | null;
  blocks: Array<{
    username: string;
    /** Seconds since 1970. */
    blocked_at: number;
  }>;
  reports: Array<{
    target: string;
    /** Seconds since 1970. */
    reported_at: number;
  }>;
  games: Array<GameRecord>;
  questions_seen: Array<string>;
  challenges: Array<Challenge>;
}

export interface Health {
  status: string;
  version?: string;
}

// ---- messages ------------------------------------------------------------------------------------

/** The player waits in the queue. */
export interface QueuedMessage {
  type: "queued";
  queue: string;
  /** Time until `cancelled` if no game is found. */
  timeout_ms: number;
  /**
   * Time until the player can be matched. Present after games that they left before anybody had
   * answered.
   */
  delay_ms?: number;
}

/** The player is out of the queue or the room, or has left the game. */
export interface CancelledMessage {
  type: "cancelled";
  queue: string;
  reason: "timeout" | "left" | "kicked" | "closed";
}

/**
 * The private room that the player is in: the reply to `join`, and after each change. After `end`
 * the players are in their room again.
 */
export interface RoomMessage {
  type: "room";
  /** Six letters and digits by which friends join. */
  code: string;
  queue: string;
  /** A username. */
  host: string;
  players: Array<Player>;
  /** Usernames of the connected players. */
  connected: Array<string>;
  locked: boolean;
  state: "waiting" | "playing";
  settings: Rules;
}

/** A game starts. */
export interface StartMessage {
  type: "start";
  game: string;
  /** Counts the messages of this game to this player: 1, 2, 3, ... */
  seq: number;
  queue: string;
  players: Array<Player>;
  rounds: number;
  /** Time until the first question. */
  starts_ms: number;
  /** With `total_seconds`: time left for all questions. */
  total_ms?: number;
  /** With `lives`: how many lives are left. */
  lives?: number;
  /** After a rematch; see there. */
  series?: Record<string, number>;
}

/** A new question. Answers are accepted from now on. */
export interface QuestionMessage {
  type: "question";
  game: string;
  seq: number;
  /** The number of the question, from 1. */
  round: number;
  text: string;
  choices: Array<string>;
  category: string;
  difficulty: "easy" | "medium" | "hard";
  /** Time left to answer. */
  answer_ms: number;
}

/** Another player has answered. */
export interface AnsweredMessage {
  type: "answered";
  game: string;
  seq: number;
  round: number;
  player: string;
}

/** The question is closed. Shows the right answer, all answers and the scores. */
export interface RevealMessage {
  type: "reveal";
  game: string;
  seq: number;
  round: number;
  /** Index of the right choice. */
  correct: number;
  /** By username. Players without an answer are missing. */
  answers: Record<string, {
    choice: number;
    points: number;
    ms: number;
  }>;
  /** By username. */
  scores: Record<string, number>;
  /** Time until the next question or the end. */
  reveal_ms: number;
  total_ms?: number;
  lives?: number;
}

/**
 * The whole game as this player sees it. It is the reply to `check`, the first message after a
 * reconnect, and tells that another player has taken the seat of a bot.
 */
export interface UpdateMessage {
  type: "update";
  game: string;
  /** The `seq` of the last message that this snapshot includes. */
  seq: number;
  queue: string;
  players: Array<Player>;
  /** Usernames of the connected players. */
  connected: Array<string>;
  rounds: number;
  /** 0 before the first question. */
  round: number;
  phase: "start" | "question" | "reveal" | "settle";
  /** Time until this phase ends. */
  left_ms: number;
  scores: Record<string, number>;
  total_ms?: number;
  lives?: number;
  series?: Record<string, number>;
  /**
   * Present in the phases `question` and `reveal`, but not for a player who came after the
   * question.
   */
  question?: {
    round?: number;
    text?: string;
    choices?: Array<string>;
    category?: string;
    difficulty?: string;
  };
  /** This player's answer to the question. */
  choice?: number;
  /** Usernames of those who have answered it. */
  answered?: Array<string>;
  /** Present in the phase `reveal`: index of the right choice. */
  correct?: number;
  /** Present in the phase `reveal`, in the same form as there. */
  answers?: Record<string, unknown>;
}

/** A player has left, or has lost the connection. */
export interface UserExitMessage {
  type: "user_exit";
  game: string;
  seq: number;
  player: string;
  /** The player can return within this time; 0: they have left. */
  returns_ms: number;
}

/** A player has reconnected, or has joined a running game (`late_join`). */
export interface UserReturnMessage {
  type: "user_return";
  game: string;
  seq: number;
  player: string;
}

/** The game has ended. */
export interface EndMessage {
  type: "end";
  game: string;
  seq: number;
  /** The operator has ended it: `stopped` counts, `void` does not. */
  reason: "finished" | "forfeit" | "abandoned" | "stopped" | "void";
  ranking: Array<{
    player: string;
    score: number;
    /** From 1. Equal scores have the same rank. */
    rank: number;
    /** The new rating. Only in rated queues. */
    rating?: number;
    rating_change?: number;
    /** Present, and true, while the rating is uncertain. */
    provisional?: boolean;
    /** Present, and true, if it is a bot. */
    bot?: boolean;
    /**
     * Present, and false, if the game changes no field of this player. That is so if nobody has
     * answered a question (such a game is not kept either), if a bot has played, or if the player
     * has met all of these opponents too often today.
     */
    counts?: boolean;
  }>;
  /** With `rematch_seconds`: time to agree to play again. */
  rematch_ms?: number;
  /** See `rematch`. */
  series?: Record<string, number>;
}

/**
 * Who wants to play the last game again, after each change. When all do, `start` follows. At the
 * end of the time it follows for those who do, if they are enough.
 */
export interface RematchMessage {
  type: "rematch";
  /** The game that has ended. */
  game: string;
  /** Usernames of those who have agreed. */
  players: Array<string>;
  /** Usernames of those who are connected. */
  connected: Array<string>;
  /** Usernames of those who are out: they declined or play elsewhere. */
  declined: Array<string>;
  /** Time left to agree; 0: there will be no rematch with this player. */
  expires_ms: number;
  /** Of two players: the games that each has won of those in a row, by username. */
  series?: Record<string, number>;
}

/** The reply to `ping`. */
export interface PongMessage {
  type: "pong";
  /** Time of the server, in ms since 1970. */
  server_ms: number;
  client_ms?: number;
}

/** A message from the operator to all players. */
export interface NoticeMessage {
  type: "notice";
  code: "message" | "maintenance";
  text: string;
  /** In ms since 1970: when the maintenance begins, or until when the message holds. */
  until_ms: number;
}

/** A message was refused. The connection stays open. */
export interface ErrorMessage {
  type: "error";
  /** A stable code, for programs. */
  code: ErrorCode;
  /** What was wrong and what was expected, for people. */
  message: string;
  /** The `id` of the refused message. */
  id?: string | number;
  /** What is wrong, by field. */
  errors?: Record<string, unknown>;
}

/** Another player sent emoji. */
export interface EmojiMessage {
  type: "emoji";
  game: string;
  seq: number;
  player: string;
  emoji: "👍" | "😂" | "😮" | "😢" | "😡" | "🎉" | "🤔" | "👏";
}

/** The player's answer. Only the first answer to a question counts. */
export interface AnswerFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** The round of the question. */
  round: number;
  /** Index into `choices`, from 0. */
  choice: number;
  /** Optional: must be the id of the current game. */
  game?: string;
}

/** Asks for an `update`. */
export interface CheckFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
}

/** A reaction. The opponents see it. */
export interface EmojiFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  emoji: "👍" | "😂" | "😮" | "😢" | "😡" | "🎉" | "🤔" | "👏";
}

/** Asks for a `pong`, with which a client can measure the offset of its clock. */
export interface PingFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** The `pong` returns it unchanged. */
  client_ms?: number;
}

/** The player wants to play the last game again with the same players, or does not. */
export interface RematchFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  accept: boolean;
}

/** Joins a queue on the same WebSocket, after `end` or `cancelled`. */
export interface JoinFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** Optional: a queue. Default: the previous one. */
  queue?: string;
  /**
   * Optional: the code of a private room or of a challenge, whose queue counts then. Without it, a
   * queue with `match: room` opens a new room.
   */
  code?: string;
}

/** Leaves the queue, the room, or the game for good. */
export interface LeaveFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
}

/**
 * The player finds a question wrong. It is one of the game they are in, or of the last one, and its
 * answer was revealed. Each player counts once.
 */
export interface FlagFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** The round of the question. */
  round: number;
}

/** The host of a room begins a game of all who are connected. */
export interface BeginFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
}

/** The host sends a player away from the room, and out of its game. They can't come back. */
export interface KickFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** A username. */
  player: string;
}

/** The host lets no new player into the room, or lets them in again. */
export interface LockFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  locked: boolean;
}

/** The host makes another player the host. */
export interface PassFields {
  /** Repeated in an `error` about this message. */
  id?: string | number | null;
  /** A username. */
  player: string;
}

/** What the server sends. */
export type ServerMessage = QueuedMessage | CancelledMessage | RoomMessage | StartMessage | QuestionMessage | AnsweredMessage | RevealMessage | UpdateMessage | UserExitMessage | UserReturnMessage | EndMessage | RematchMessage | PongMessage | NoticeMessage | ErrorMessage | EmojiMessage;

/** What a client sends. */
export type ClientMessage = ({ type: "answer" } & AnswerFields) | ({ type: "check" } & CheckFields) | ({ type: "emoji" } & EmojiFields) | ({ type: "ping" } & PingFields) | ({ type: "rematch" } & RematchFields) | ({ type: "join" } & JoinFields) | ({ type: "leave" } & LeaveFields) | ({ type: "flag" } & FlagFields) | ({ type: "begin" } & BeginFields) | ({ type: "kick" } & KickFields) | ({ type: "lock" } & LockFields) | ({ type: "pass" } & PassFields);

/** The codes of errors, over HTTP and in `error` messages. */
export const ERROR_CODES = ["bad_request", "bad_json", "not_authenticated", "bad_credentials", "bad_id_token", "bad_merge_token", "bad_code", "banned", "wrong_password", "sign_in_again", "origin_refused", "not_found", "method_not_allowed", "body_timeout", "unknown_code", "expired_code", "already_reported", "blocks_full", "has_account", "not_a_guest", "identity_taken", "in_game", "provider_linked", "last_sign_in", "ambiguous", "too_large", "unsupported_media_type", "invalid", "app_too_old", "upgrade_required", "malformed_code", "yourself", "too_many_attempts", "head_too_large", "registration_closed", "queue_closed", "maintenance", "no_mail", "provider_unavailable", "guests_full", "reports_full", "internal", "unavailable", "username_taken", "email_taken", "late_answer", "already_answered", "wrong_round", "not_revealed", "wrong_game", "no_such_choice", "not_playing", "unknown_queue", "queue_full", "already_played", "code_needed", "own_challenge", "challenge_played", "challenge_full", "room_full", "room_locked", "kicked", "rematch_over", "not_in_room", "not_host", "room_plays", "too_few_players", "no_such_player", "not_text", "too_fast", "bad_message", "unknown_type", "invalid_message", "wrong_state"] as const;
export type ErrorCode = (typeof ERROR_CODES)[number];

/** The queues of the server. */
export type QueueName = "random" | "rated" | "party" | "solo" | "daily" | "friends" | "challenge";

// ---- HTTP ----------------------------------------------------------------------------------------

export type Failure = Partial<Omit<Problem, "code">> & { code?: ErrorCode | "network" };

/** An error of the server, or of the way to it (`status` 0, `code` "network"). */
export class TriviaError extends Error {
  readonly status: number;
  readonly code: ErrorCode | "network";
  /** What is wrong, by field. */
  readonly errors: Record<string, string[]>;
  /** Seconds to wait before another try; 0 if the server names none. */
  readonly retryAfter: number;
  /** All that the server says: `merge`, `guest` and `account` of `identity_taken`, the end of a ban. */
  readonly problem: Failure;

  constructor(status: number, problem: Failure, retryAfter = 0) {
    super(problem.detail ?? `the server answered ${status}`);
    this.name = "TriviaError";
    this.status = status;
    this.code = problem.code ?? "internal";
    this.errors = problem.errors ?? {};
    this.retryAfter = retryAfter;
    this.problem = problem;
  }
}

export interface Options {
  /** The session of an earlier start. */
  token?: string | null;
  /** Gets each new token, to be kept, and null when the session has ended. */
  onToken?: (token: string | null) => void;
  /** Milliseconds after which a request fails. Default: 15,000. */
  timeoutMs?: number;
  /** What the server is told of this app. It may require a newer version. */
  app?: { name: string; version: string };
}

/** A player's account on a server. */
export class Trivia {
  readonly url: string;
  readonly app: Options["app"];
  token: string | null;
  private readonly options: Options;

  constructor(url: string, options: Options = {}) {
    this.url = url.replace(/\/+$/, "");
    this.token = options.token ?? null;
    this.app = options.app;
    this.options = options;
  }

  /** Joins a queue, or resumes the game in progress. Fields of `join` may be added. */
  play(queue: QueueName, fields: Omit<JoinFields, "queue"> = {}): Play {
    return new Play(this, queue, fields);
  }

  /** Keeps the token of a session, or forgets it. */
  setToken(token: string | null): void {
    if (token === this.token) return;
    this.token = token;
    this.options.onToken?.(token);
  }

  /** Creates an account and signs in. It can be repeated if the reply was lost. */
  async register(body: NewUser): Promise<Session> {
    const session = await this.request<Session>("POST", "/auth/register", undefined, body);
    this.setToken(session.token);
    return session;
  }

  /** Creates a guest, or signs in the same guest again (200). */
  async guest(body: Guest): Promise<Session> {
    const session = await this.request<Session>("POST", "/auth/guest", undefined, body);
    this.setToken(session.token);
    return session;
  }

  /** Gives a guest an account. They keep everything, also their username if they send none. */
  async upgrade(body: Upgrade): Promise<Upgraded> {
    return this.request<Upgraded>("POST", "/auth/upgrade", undefined, body);
  }

  /** Mails a code for a new password, if the account exists and has an address. */
  async recover(body: Recovery): Promise<void> {
    return this.request<void>("POST", "/auth/recover", undefined, body);
  }

  /** Sets a new password with a code, ends all sessions and signs in. */
  async reset(body: Reset): Promise<Session> {
    const session = await this.request<Session>("POST", "/auth/reset", undefined, body);
    this.setToken(session.token);
    return session;
  }

  /** Sends a code that confirms an address: the caller's present address or a new one. */
  async sendConfirmation(body: ConfirmationMail): Promise<void> {
    return this.request<void>("POST", "/auth/confirm/send", undefined, body);
  }

  /** Confirms the address that a code was sent to. It becomes the caller's. */
  async confirm(body: Confirmation): Promise<void> {
    return this.request<void>("POST", "/auth/confirm", undefined, body);
  }

  /** Signs in. */
  async login(body: Login): Promise<Session> {
    const session = await this.request<Session>("POST", "/auth/login", undefined, body);
    this.setToken(session.token);
    return session;
  }

  /** Ends this session. */
  async logout(): Promise<void> {
    await this.request<void>("POST", "/auth/logout", undefined, undefined);
    this.setToken(null);
  }

  /** Ends all sessions of the caller, on every device. */
  async endSessions(): Promise<void> {
    await this.request<void>("DELETE", "/auth/sessions", undefined, undefined);
    this.setToken(null);
  }

  /** Changes the password and ends all other sessions. */
  async changePassword(body: PasswordChange): Promise<void> {
    return this.request<void>("POST", "/auth/password", undefined, body);
  }

  /** Returns the caller's account. */
  async readMe(): Promise<User> {
    return this.request<User>("GET", "/users/me", undefined, undefined);
  }

  /** Changes fields of the caller's account. A new sign-in name takes the present password. */
  async changeMe(body: UserChanges): Promise<User> {
    return this.request<User>("PATCH", "/users/me", undefined, body);
  }

  /** Erases the caller's account and all personal data. */
  async eraseMe(body: PasswordConfirmation): Promise<void> {
    await this.request<void>("DELETE", "/users/me", undefined, body);
    this.setToken(null);
  }

  /** Returns all data that is stored about the caller. */
  async exportMe(): Promise<Export> {
    return this.request<Export>("GET", "/users/me/export", undefined, undefined);
  }

  /** Returns the caller's finished games, newest first. */
  async myGames(query: { /** The number of entries. Default: 20. */ limit?: number; /** The `cursor` of the previous page. Without it: the newest games. */ cursor?: string; } = {}): Promise<GameList> {
    return this.request<GameList>("GET", "/users/me/games", query, undefined);
  }

  /** Reports a player or a question to the operator, once each. */
  async report(body: Report): Promise<ReportReceipt> {
    return this.request<ReportReceipt>("POST", "/reports", undefined, body);
  }

  /** Returns the public fields of a player; 404 if caller or player has blocked the other. */
  async readUser(username: string): Promise<Player> {
    return this.request<Player>("GET", `/users/${encodeURIComponent(username)}`, undefined, undefined);
  }

  /** Blocks a player: neither meets the other in a queue, or gets messages of the other. */
  async blockUser(username: string): Promise<void> {
    return this.request<void>("PUT", `/users/${encodeURIComponent(username)}/block`, undefined, undefined);
  }

  /** Lifts the caller's block of a player, if there is one. */
  async liftBlock(username: string): Promise<void> {
    return this.request<void>("DELETE", `/users/${encodeURIComponent(username)}/block`, undefined, undefined);
  }

  /** Returns the players whom the caller has blocked, the latest first. */
  async myBlocks(): Promise<BlockList> {
    return this.request<BlockList>("GET", "/users/me/blocks", undefined, undefined);
  }

  /** Returns a finished game of the caller with all its rounds. */
  async readGame(id: string): Promise<GameRecord> {
    return this.request<GameRecord>("GET", `/games/${encodeURIComponent(id)}`, undefined, undefined);
  }

  /** Returns a page of a leaderboard, highest value first. */
  async readLeaderboard(name: string, query: { /** The number of entries. Default: 20. */ limit?: number; offset?: number; /** Return the page that has the caller in its middle. */ around?: "me"; } = {}): Promise<Leaderboard> {
    return this.request<Leaderboard>("GET", `/leaderboards/${encodeURIComponent(name)}`, query, undefined);
  }

  /** Returns the queues: their rules, and how many players wait and play. */
  async readQueues(): Promise<QueueList> {
    return this.request<QueueList>("GET", "/queues", undefined, undefined);
  }

  /** Makes a challenge, which the caller and their friends play by its code. */
  async makeChallenge(body: ChallengeQueue): Promise<NewChallenge> {
    return this.request<NewChallenge>("POST", "/challenges", undefined, body);
  }

  /** Returns the challenges that the caller has made or played, open and finished ones. */
  async myChallenges(): Promise<ChallengeList> {
    return this.request<ChallengeList>("GET", "/challenges", undefined, undefined);
  }

  /** Returns a challenge, with its rounds once the caller has played it. */
  async readChallenge(code: string): Promise<Challenge> {
    return this.request<Challenge>("GET", `/challenges/${encodeURIComponent(code)}`, undefined, undefined);
  }

  /** Returns a private room, for the preview of a link to it. */
  async readRoom(code: string): Promise<Room> {
    return this.request<Room>("GET", `/rooms/${encodeURIComponent(code)}`, undefined, undefined);
  }

  /** Tells that the process answers, and its version. */
  async live(): Promise<Health> {
    return this.request<Health>("GET", "/health/live", undefined, undefined);
  }

  /** Tells whether the server can serve players: Redis answers and no restart is under way. */
  async ready(): Promise<Health> {
    return this.request<Health>("GET", "/health/ready", undefined, undefined);
  }

  private async request<T>(method: string, path: string, query?: object, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { Accept: "application/json" };
    const sent = this.token;
    if (this.app) Object.assign(headers, { "X-App": this.app.name, "X-Version": this.app.version });
    if (sent) headers.Authorization = `Bearer ${sent}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), this.options.timeoutMs ?? 15_000);
    try {
      const response = await fetch(this.url + path + queryString(query), {
        method,
        headers,
        body: body === undefined ? null : JSON.stringify(body),
        signal: abort.signal,
      });
      const text = await response.text();
      if (response.ok) return (text ? JSON.parse(text) : undefined) as T;
      const error = problemOf(response, text);
      if (error.code === "not_authenticated" && sent === this.token) this.setToken(null);
      throw error;
    } catch (error) {
      if (error instanceof TriviaError) throw error;
      throw new TriviaError(0, { code: "network", detail: `no answer from ${this.url}: ${error}` });
    } finally {
      clearTimeout(timer);
    }
  }
}

function problemOf(response: Response, text: string): TriviaError {
  let problem: Partial<Problem> = {};
  try {
    problem = JSON.parse(text);
  } catch {
    // a proxy in front may answer in a form of its own
  }
  return new TriviaError(response.status, problem, Number(response.headers.get("Retry-After")) || 0);
}

function queryString(values: object = {}): string {
  const pairs = Object.entries(values).filter(([, value]) => value !== undefined);
  const text = pairs.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join("&");
  return text && `?${text}`;
}

// ---- play ----------------------------------------------------------------------------------------

/**
 * What is known of the connection. `pauseMs`: until the next try. `reason`: why it ended. `detail`:
 * what the server says of it; for `outdated`, the address of a new version.
 */
export type Link =
  | { state: "connecting" | "online" }
  | { state: "waiting"; pauseMs: number }
  | { state: "closed"; reason: CloseReason; detail: string };

/**
 * Why a connection is closed for good.
 *
 * - `done`: the game or the wait for one has ended, or `close` was called. `join` connects again.
 * - `signed_out`: the session has ended. Sign in again.
 * - `replaced`: the player plays on another device.
 * - `banned`, `outdated`: the player may not play; the app is too old.
 * - `refused`: the server does not understand this client, or has no such queue.
 */
export type CloseReason = "done" | "signed_out" | "replaced" | "banned" | "outdated" | "refused";

/** The game as this player knows it. It is brought up to date before the handlers run. */
export interface GameView {
  /** What happens. `settle`: the result is being computed. */
  phase: "none" | "queued" | "start" | "question" | "reveal" | "settle" | "end" | "cancelled";
  id: string;
  players: Player[];
  rounds: number;
  round: number;
  question: QuestionView | null;
  /** This player's answer to the question: an index into its choices. */
  choice: number | null;
  /** The right choice, once it is revealed. */
  correct: number | null;
  /** Usernames of others who have answered. */
  answered: string[];
  /** All answers, once they are revealed. */
  answers: Record<string, { choice: number; points: number; ms: number }>;
  scores: Record<string, number>;
  /** Usernames of players without a connection. */
  away: string[];
  ranking: EndMessage["ranking"];
  reason: string;
}

export interface QuestionView {
  round: number;
  text: string;
  choices: string[];
  category: string;
  difficulty: string;
}

const FINAL: Record<number, CloseReason> = {
  1008: "refused",
  4400: "refused",
  4401: "signed_out",
  4403: "banned",
  4409: "replaced",
  4413: "refused",
  4426: "outdated",
};
const RESTART = 1012;
const BUSY = [1013, 4429];
const CONNECT_MS = 10_000; // for a handshake
const SILENCE_MS = 20_000; // after which a `ping` asks whether the connection is alive
const REPLY_MS = 8_000; // in which anything must arrive after a `ping` or a `check`
const MAX_PAUSE_MS = 15_000;
const BUSY_PAUSE_MS = 6_000;
const RETRY_ANSWER_MS = 500;

type Events = { [Type in ServerMessage["type"]]: Extract<ServerMessage, { type: Type }> } & {
  /** The connection has changed. */
  link: Link;
  /** Anything of the game or the connection has changed: draw it anew. */
  change: GameView;
};
type Handler<T> = (event: T) => void;

/** A player's connection to the game. It reconnects by itself, and misses nothing. */
export class Play {
  /** The game as this player knows it. */
  game: GameView = emptyGame();
  /** The private room that the player is in: who is its host, who is there, whether it is locked. */
  room: RoomMessage | null = null;
  link: Link = { state: "connecting" };
  private readonly trivia: Trivia;
  private queue: QueueName;
  private joinFields: object;
  private readonly handlers = new Map<string, Set<Handler<never>>>();
  private socket: WebSocket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private alive: ReturnType<typeof setTimeout> | undefined;
  private wanted = true; // whether a lost connection is made again
  private failures = 0;
  private joined = false; // whether the server has answered to the fields of the join
  private seq = 0;
  private checking = false; // an `update` is on its way
  private deadline = 0; // end of the phase, in ms of `now`
  private unsure: { game: string; round: number; choice: number } | null = null;
  private sent = 0;
  private readonly onBack = (): void => this.wake();

  constructor(trivia: Trivia, queue: QueueName, fields: object) {
    this.trivia = trivia;
    this.queue = queue;
    this.joinFields = fields;
    const page = globalThis as { addEventListener?: typeof addEventListener; document?: Document };
    page.addEventListener?.("online", this.onBack);
    page.document?.addEventListener?.("visibilitychange", this.onBack);
    this.connect();
  }

  /** Calls a function at each message of a type. Returns what ends that. */
  on<Type extends keyof Events>(type: Type, handler: Handler<Events[Type]>): () => void {
    const known = this.handlers.get(type) ?? new Set();
    this.handlers.set(type, known.add(handler as Handler<never>));
    return () => known.delete(handler as Handler<never>);
  }

  /** Milliseconds until the phase ends. */
  leftMs(): number {
    return Math.max(0, this.deadline - now());
  }

  /** Answers the open question. It arrives once, also when the connection breaks meanwhile. */
  answer(choice: number): void {
    const { id, round, phase } = this.game;
    if (phase !== "question" || this.game.choice !== null) return;
    this.game.choice = choice;
    this.unsure = { game: id, round, choice };
    this.sendAnswer();
    this.emit("change", this.game);
  }

  /** Joins a queue, after `end` or `cancelled`. Without a name it is the previous one. */
  join(queue: QueueName = this.queue, fields: Omit<JoinFields, "queue"> = {}): void {
    this.queue = queue;
    this.joinFields = fields;
    this.joined = false;
    this.wanted = true;
    if (this.socket?.readyState === 1) this.send({ type: "join", queue, ...fields } as ClientMessage);
    else this.reconnect(0);
  }

  /** Leaves the queue, or the game for good. */
  leave(): void {
    this.send({ type: "leave" });
  }

  /** A reaction. The opponents see it. */
  emoji(fields: EmojiFields): boolean {
    return this.send({ type: "emoji", ...fields });
  }

  /** The player wants to play the last game again with the same players, or does not. */
  rematch(fields: RematchFields): boolean {
    return this.send({ type: "rematch", ...fields });
  }

  /**
   * The player finds a question wrong. It is one of the game they are in, or of the last one, and
   * its answer was revealed. Each player counts once.
   */
  flag(fields: FlagFields): boolean {
    return this.send({ type: "flag", ...fields });
  }

  /** The host of a room begins a game of all who are connected. */
  begin(fields: BeginFields = {}): boolean {
    return this.send({ type: "begin", ...fields });
  }

  /** The host sends a player away from the room, and out of its game. They can't come back. */
  kick(fields: KickFields): boolean {
    return this.send({ type: "kick", ...fields });
  }

  /** The host lets no new player into the room, or lets them in again. */
  lock(fields: LockFields): boolean {
    return this.send({ type: "lock", ...fields });
  }

  /** The host makes another player the host. */
  pass(fields: PassFields): boolean {
    return this.send({ type: "pass", ...fields });
  }

  /** Sends a message. Without a connection it is dropped; `update` then shows the true state. */
  send(message: ClientMessage): boolean {
    if (this.socket?.readyState !== 1) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Closes the connection. The seat in a game is kept for a while; `join` returns to it. */
  close(): void {
    this.wanted = false;
    this.end("done");
  }

  /** Call it when the app comes back from the background. In a browser it happens by itself. */
  wake(): void {
    if (!this.wanted) return;
    if (this.socket?.readyState === 1) this.probe();
    else this.reconnect(0);
  }

  // -- connection

  private connect(): void {
    clearTimeout(this.timer);
    this.drop();
    const { token, url, app } = this.trivia;
    if (!token) return this.end("signed_out");
    const named = app ? { app: app.name, version: app.version } : {};
    const path = `/game/${encodeURIComponent(this.queue)}${queryString({ ...this.fields(), ...named })}`;
    const socket = new WebSocket(url.replace(/^http/, "ws") + path, [PROTOCOL, `bearer.${token}`]);
    this.socket = socket;
    this.setLink({ state: "connecting" });
    this.timer = setTimeout(() => this.lost(socket, 0), CONNECT_MS);
    socket.onopen = () => {
      if (socket !== this.socket) return;
      clearTimeout(this.timer);
      this.checking = false;
      this.setLink({ state: "online" });
      this.listen();
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.receive(String(event.data));
    };
    socket.onclose = (event) => this.lost(socket, event.code, token, event.reason);
  }

  /** What the address of a connection says: the room to return to, or how to join. */
  private fields(): object {
    if (this.room) return { code: this.room.code };
    return this.joined ? {} : this.joinFields;
  }

  /** Lets go of the socket, so that nothing it still says is heard. */
  private drop(): void {
    const socket = this.socket;
    this.socket = null;
    clearTimeout(this.alive);
    if (socket && socket.readyState < 2) socket.close();
  }

  private lost(socket: WebSocket, code: number, token: string | null = null, detail = ""): void {
    if (socket !== this.socket) return;
    this.drop();
    const final = FINAL[code];
    if (final === "signed_out" && token === this.trivia.token) this.trivia.setToken(null);
    if (final) return this.end(final, detail);
    if (!this.wanted) return this.end("done");
    this.failures += 1;
    if (code === RESTART && this.failures === 1) return this.reconnect(0);
    const grown = Math.min(MAX_PAUSE_MS, 250 * 2 ** this.failures);
    const pause = BUSY.includes(code) ? Math.max(grown, BUSY_PAUSE_MS) : grown;
    this.reconnect(pause * (0.5 + Math.random() / 2)); // so that not all phones come at once
  }

  private reconnect(pauseMs: number): void {
    clearTimeout(this.timer);
    if (pauseMs === 0) return this.connect();
    this.setLink({ state: "waiting", pauseMs });
    this.timer = setTimeout(() => this.connect(), pauseMs);
  }

  private end(reason: CloseReason, detail = ""): void {
    clearTimeout(this.timer);
    this.drop();
    this.wanted = false;
    this.setLink({ state: "closed", reason, detail });
  }

  /** Asks whether the connection is alive when nothing was heard for a while. */
  private listen(): void {
    clearTimeout(this.alive);
    this.alive = setTimeout(() => this.probe(), SILENCE_MS);
  }

  private probe(): void {
    const socket = this.socket;
    if (!socket || !this.send({ type: "ping" })) return;
    clearTimeout(this.alive);
    this.alive = setTimeout(() => this.lost(socket, 0), REPLY_MS);
  }

  private setLink(link: Link): void {
    this.link = link;
    this.emit("link", link);
    this.emit("change", this.game);
  }

  // -- messages

  private receive(text: string): void {
    this.listen();
    this.failures = 0;
    this.joined = true;
    const message = JSON.parse(text) as ServerMessage;
    if (this.isStale(message)) return;
    if ("seq" in message && message.game !== this.game.id) this.game = emptyGame(message.game);
    if (message.type === "error" && this.repairs(message)) return;
    this.apply(message);
    this.emit(message.type, message as never);
    this.emit("change", this.game);
  }

  /** Tells whether a message brings nothing new. After a gap it asks for the whole state. */
  private isStale(message: ServerMessage): boolean {
    if (!("seq" in message)) return false;
    const known = message.game === this.game.id ? this.seq : 0;
    if (message.type === "update") {
      this.checking = false;
      if (message.seq < known) return true;
    } else {
      if (message.seq <= known) return true;
      if (message.seq > known + 1) this.check();
    }
    this.seq = message.seq;
    return false;
  }

  private check(): void {
    if (this.checking) return;
    this.checking = this.send({ type: "check" });
  }

  private sendAnswer(): void {
    if (!this.unsure) return;
    this.sent += 1;
    this.send({ type: "answer", ...this.unsure, id: this.sent });
  }

  private apply(message: ServerMessage): void {
    const game = this.game;
    switch (message.type) {
      case "queued":
        this.game = emptyGame();
        this.game.phase = "queued";
        this.room = null;
        return this.setDeadline(message.timeout_ms);
      case "cancelled":
        game.phase = "cancelled";
        game.reason = message.reason;
        this.room = null;
        this.wanted = false;
        return;
      case "room":
        this.room = message;
        this.wanted = true;
        return;
      case "start":
        game.phase = "start";
        game.rounds = message.rounds;
        game.players = message.players;
        game.scores = Object.fromEntries(message.players.map(({ username }) => [username, 0]));
        return this.setDeadline(message.starts_ms);
      case "question":
        this.openRound(message.round);
        game.question = message;
        game.phase = "question";
        return this.setDeadline(message.answer_ms);
      case "answered":
        if (message.round === game.round) game.answered.push(message.player);
        return;
      case "reveal":
        game.phase = "reveal";
        game.correct = message.correct;
        game.answers = message.answers;
        game.scores = message.scores;
        this.unsure = null;
        return this.setDeadline(message.reveal_ms);
      case "update":
        return this.applyUpdate(message);
      case "user_exit":
        if (!game.away.includes(message.player)) game.away.push(message.player);
        return;
      case "user_return":
        game.away = game.away.filter((name) => name !== message.player);
        return;
      case "end":
        game.phase = "end";
        game.reason = message.reason;
        game.ranking = message.ranking;
        this.unsure = null;
        this.wanted = this.room !== null;
        return;
    }
  }

  private openRound(round: number): void {
    Object.assign(this.game, { round, choice: null, correct: null, answered: [], answers: {} });
    this.unsure = null;
  }

  private applyUpdate(update: Extract<ServerMessage, { type: "update" }>): void {
    const unsure = this.unsure;
    this.game = {
      ...emptyGame(update.game),
      phase: update.phase,
      players: update.players,
      rounds: update.rounds,
      round: update.round,
      question: (update.question as QuestionView | undefined) ?? null,
      choice: update.choice ?? null,
      correct: update.correct ?? null,
      answered: update.answered ?? [],
      answers: (update.answers as GameView["answers"] | undefined) ?? {},
      scores: update.scores,
      away: update.players.map((player) => player.username).filter((name) => !update.connected.includes(name)),
    };
    this.wanted = true;
    this.setDeadline(update.left_ms);
    const open = update.phase === "question" && update.choice === undefined;
    if (!open || unsure?.game !== update.game || unsure.round !== update.round) {
      this.unsure = null;
      return;
    }
    this.game.choice = unsure.choice; // it was lost on the way: the server knows of none
    this.sendAnswer();
  }

  /** Handles an error about the answer. Returns whether the app need not know. */
  private repairs(error: Extract<ServerMessage, { type: "error" }>): boolean {
    const unsure = this.unsure;
    if (!unsure || error.id !== this.sent) return false;
    if (error.code === "already_answered") return true; // it had arrived before
    if (error.code === "unavailable") {
      setTimeout(() => this.unsure === unsure && this.sendAnswer(), RETRY_ANSWER_MS);
      return true;
    }
    this.unsure = null;
    this.game.choice = null;
    return false;
  }

  private setDeadline(ms: number): void {
    this.deadline = now() + ms;
  }

  private emit<Type extends keyof Events>(type: Type, event: Events[Type]): void {
    for (const handler of this.handlers.get(type) ?? []) (handler as Handler<Events[Type]>)(event);
  }
}

function emptyGame(id = ""): GameView {
  return {
    phase: "none",
    id,
    players: [],
    rounds: 0,
    round: 0,
    question: null,
    choice: null,
    correct: null,
    answered: [],
    answers: {},
    scores: {},
    away: [],
    ranking: [],
    reason: "",
  };
}

/** Milliseconds of a clock that nobody sets. */
function now(): number {
  return globalThis.performance?.now() ?? Date.now();
}
