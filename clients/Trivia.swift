// A client for Trivia, made from schema.yaml by `python trivia.py client swift`.
// Do not edit it: change schema.yaml and make it again.
//
// It needs nothing but Foundation: iOS 15, macOS 12 or later.
//
//   let trivia = Trivia(url: URL(string: "https://quiz.example.org")!, token: kept) { keep($0) }
//   if trivia.token == nil { _ = try await trivia.login(Login(login: name, password: password)) }
//   let play = trivia.play(queue: "random")
//   play.onChange = { game in show(game) }
//   play.onMessage = { message in if case .end(let end) = message { celebrate(end.ranking) } }
//   play.answer(0)

import Foundation

/// The version of the protocol. The server refuses a client of another version.
public let triviaProtocol = "trivia.v1"

// MARK: - types

/// A value of a JSON document.
public enum JSONValue: Codable, Equatable, Sendable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    public init(from decoder: Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONValue].self))
        }
    }

    public func encode(to encoder: Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .null: try container.encodeNil()
        case .bool(let value): try container.encode(value)
        case .number(let value): try container.encode(value)
        case .string(let value): try container.encode(value)
        case .array(let value): try container.encode(value)
        case .object(let value): try container.encode(value)
        }
    }
}

public struct NewUser: Codable, Equatable, Sendable {
    /// The name that other players see.
    public var username: String
    /// An alternative to the username at sign-in, and where a forgotten password is recovered.
    public var email: String
    /// The server stores only its argon2id hash.
    public var password: String
    /// The http or https address of a picture. Default: "".
    public var avatar: String?
    /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
    public var zone: String?

    enum CodingKeys: String, CodingKey {
        case username = "username"
        case email = "email"
        case password = "password"
        case avatar = "avatar"
        case zone = "zone"
    }

    public init(username: String, email: String, password: String, avatar: String? = nil, zone: String? = nil) {
        self.username = username
        self.email = email
        self.password = password
        self.avatar = avatar
        self.zone = zone
    }
}

public struct Guest: Codable, Equatable, Sendable {
    /// A random text that the device makes once and keeps as a password.
    public var secret: String

    enum CodingKeys: String, CodingKey {
        case secret = "secret"
    }

    public init(secret: String) {
        self.secret = secret
    }
}

public struct Recovery: Codable, Equatable, Sendable {
    public var login: String

    enum CodingKeys: String, CodingKey {
        case login = "login"
    }

    public init(login: String) {
        self.login = login
    }
}

public struct Reset: Codable, Equatable, Sendable {
    public var login: String
    /// The six digits of the mail.
    public var code: String
    /// The server stores only its argon2id hash.
    public var password: String

    enum CodingKeys: String, CodingKey {
        case login = "login"
        case code = "code"
        case password = "password"
    }

    public init(login: String, code: String, password: String) {
        self.login = login
        self.code = code
        self.password = password
    }
}

public struct Confirmation: Codable, Equatable, Sendable {
    /// The six digits of the mail.
    public var code: String

    enum CodingKeys: String, CodingKey {
        case code = "code"
    }

    public init(code: String) {
        self.code = code
    }
}

public struct ConfirmationMail: Codable, Equatable, Sendable {
    /// An alternative to the username at sign-in, and where a forgotten password is recovered.
    public var email: String?

    enum CodingKeys: String, CodingKey {
        case email = "email"
    }

    public init(email: String? = nil) {
        self.email = email
    }
}

public struct Upgrade: Codable, Equatable, Sendable {
    /// The name that other players see.
    public var username: String?
    /// An alternative to the username at sign-in, and where a forgotten password is recovered.
    public var email: String
    /// The server stores only its argon2id hash.
    public var password: String
    /// The http or https address of a picture. Default: "".
    public var avatar: String?
    /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
    public var zone: String?

    enum CodingKeys: String, CodingKey {
        case username = "username"
        case email = "email"
        case password = "password"
        case avatar = "avatar"
        case zone = "zone"
    }

    public init(username: String? = nil, email: String, password: String, avatar: String? = nil, zone: String? = nil) {
        self.username = username
        self.email = email
        self.password = password
        self.avatar = avatar
        self.zone = zone
    }
}

public struct UserChanges: Codable, Equatable, Sendable {
    /// The name that other players see.
    public var username: String?
    /// An alternative to the username at sign-in, and where a forgotten password is recovered.
    public var email: String?
    /// The http or https address of a picture. Default: "".
    public var avatar: String?
    /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
    public var zone: String?
    /// The present password. A new username or email takes it.
    public var password: String?

    enum CodingKeys: String, CodingKey {
        case username = "username"
        case email = "email"
        case avatar = "avatar"
        case zone = "zone"
        case password = "password"
    }

    public init(username: String? = nil, email: String? = nil, avatar: String? = nil, zone: String? = nil, password: String? = nil) {
        self.username = username
        self.email = email
        self.avatar = avatar
        self.zone = zone
        self.password = password
    }
}

public struct Login: Codable, Equatable, Sendable {
    /// A username or email.
    public var login: String?
    /// Can be given instead of login.
    public var username: String?
    /// Can be given instead of login.
    public var email: String?
    public var password: String

    enum CodingKeys: String, CodingKey {
        case login = "login"
        case username = "username"
        case email = "email"
        case password = "password"
    }

    public init(login: String? = nil, username: String? = nil, email: String? = nil, password: String) {
        self.login = login
        self.username = username
        self.email = email
        self.password = password
    }
}

public struct PasswordChange: Codable, Equatable, Sendable {
    /// The present password.
    public var password: String
    /// The server stores only its argon2id hash.
    public var newPassword: String

    enum CodingKeys: String, CodingKey {
        case password = "password"
        case newPassword = "new_password"
    }

    public init(password: String, newPassword: String) {
        self.password = password
        self.newPassword = newPassword
    }
}

public struct PasswordConfirmation: Codable, Equatable, Sendable {
    /// Needed, unless the account has none: that of a guest, or of an identity.
    public var password: String?

    enum CodingKeys: String, CodingKey {
        case password = "password"
    }

    public init(password: String? = nil) {
        self.password = password
    }
}

public struct Report: Codable, Equatable, Sendable {
    /// A username.
    public var player: String?
    /// Instead of a player: the text of a question as it was shown, or its id.
    public var question: String?
    /// Of a player: name, picture, message, cheating; of a question: wrong, ambiguous, outdated,
    /// offensive.
    public var reason: String
    /// A game of the caller, running or not; the operator sees its rounds.
    public var game: String?
    /// A note to the operator.
    public var text: String?

    enum CodingKeys: String, CodingKey {
        case player = "player"
        case question = "question"
        case reason = "reason"
        case game = "game"
        case text = "text"
    }

    public init(player: String? = nil, question: String? = nil, reason: String, game: String? = nil, text: String? = nil) {
        self.player = player
        self.question = question
        self.reason = reason
        self.game = game
        self.text = text
    }
}

public struct ChallengeQueue: Codable, Equatable, Sendable {
    /// A queue with `match: challenge`.
    public var queue: String

    enum CodingKeys: String, CodingKey {
        case queue = "queue"
    }

    public init(queue: String) {
        self.queue = queue
    }
}

public struct User: Codable, Equatable, Sendable {
    /// The name that other players see.
    public var username: String
    public var email: String?
    /// The http or https address of a picture.
    public var avatar: String
    /// Games in which the player alone was first.
    public var wins: Int
    /// Games that ended and count.
    public var games: Int
    /// Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number.
    public var rating: Int
    /// Days in a row with a daily game.
    public var streak: Int
    /// Points in daily games.
    public var dailyPoints: Int
    /// The time zone of the player's phone. Their `streak` counts days by it.
    public var zone: String
    /// Seconds since 1970.
    public var createdAt: Int
    public var emailConfirmed: Bool
    /// Present while the user is a guest.
    public var guest: JSONValue?
    /// Present while the rating is uncertain.
    public var provisional: JSONValue?

    enum CodingKeys: String, CodingKey {
        case username = "username"
        case email = "email"
        case avatar = "avatar"
        case wins = "wins"
        case games = "games"
        case rating = "rating"
        case streak = "streak"
        case dailyPoints = "daily_points"
        case zone = "zone"
        case createdAt = "created_at"
        case emailConfirmed = "email_confirmed"
        case guest = "guest"
        case provisional = "provisional"
    }

    public init(username: String, email: String? = nil, avatar: String, wins: Int, games: Int, rating: Int, streak: Int, dailyPoints: Int, zone: String, createdAt: Int, emailConfirmed: Bool, guest: JSONValue? = nil, provisional: JSONValue? = nil) {
        self.username = username
        self.email = email
        self.avatar = avatar
        self.wins = wins
        self.games = games
        self.rating = rating
        self.streak = streak
        self.dailyPoints = dailyPoints
        self.zone = zone
        self.createdAt = createdAt
        self.emailConfirmed = emailConfirmed
        self.guest = guest
        self.provisional = provisional
    }
}

public struct Player: Codable, Equatable, Sendable {
    /// The name that other players see.
    public var username: String
    /// The http or https address of a picture.
    public var avatar: String
    /// Games in which the player alone was first.
    public var wins: Int
    /// Games that ended and count.
    public var games: Int
    /// Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number.
    public var rating: Int
    /// Days in a row with a daily game.
    public var streak: Int
    /// Points in daily games.
    public var dailyPoints: Int
    /// Present while the user is a guest.
    public var guest: JSONValue?
    /// Present while the rating is uncertain.
    public var provisional: JSONValue?
    /// Present if the player is a bot.
    public var bot: JSONValue?

    enum CodingKeys: String, CodingKey {
        case username = "username"
        case avatar = "avatar"
        case wins = "wins"
        case games = "games"
        case rating = "rating"
        case streak = "streak"
        case dailyPoints = "daily_points"
        case guest = "guest"
        case provisional = "provisional"
        case bot = "bot"
    }

    public init(username: String, avatar: String, wins: Int, games: Int, rating: Int, streak: Int, dailyPoints: Int, guest: JSONValue? = nil, provisional: JSONValue? = nil, bot: JSONValue? = nil) {
        self.username = username
        self.avatar = avatar
        self.wins = wins
        self.games = games
        self.rating = rating
        self.streak = streak
        self.dailyPoints = dailyPoints
        self.guest = guest
        self.provisional = provisional
        self.bot = bot
    }
}

public struct Session: Codable, Equatable, Sendable {
    public var token: String
    /// Seconds since 1970; each day of use moves it forward.
    public var expiresAt: Int
    public var user: User

    enum CodingKeys: String, CodingKey {
        case token = "token"
        case expiresAt = "expires_at"
        case user = "user"
    }

    public init(token: String, expiresAt: Int, user: User) {
        self.token = token
        self.expiresAt = expiresAt
        self.user = user
    }
}

public struct Upgraded: Codable, Equatable, Sendable {
    public var user: User

    enum CodingKeys: String, CodingKey {
        case user = "user"
    }

    public init(user: User) {
        self.user = user
    }
}

public struct Problem: Codable, Equatable, Sendable {
    public var type: String
    public var title: String
    public var status: Int
    public var detail: String
    /// Stable; for programs. A later version may add codes.
    public var code: String
    /// What is wrong, by field.
    public var errors: [String: [String]]?
    /// A token for POST /auth/merge.
    public var merge: String?
    public var guest: Player?
    public var account: Player?
    /// End of a ban, in ms since 1970; 0: it has none.
    public var untilMs: Int?
    /// Of a ban.
    public var reason: String?
    /// Where a new version of the app is.
    public var store: String?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case title = "title"
        case status = "status"
        case detail = "detail"
        case code = "code"
        case errors = "errors"
        case merge = "merge"
        case guest = "guest"
        case account = "account"
        case untilMs = "until_ms"
        case reason = "reason"
        case store = "store"
    }

    public init(type: String, title: String, status: Int, detail: String, code: String, errors: [String: [String]]? = nil, merge: String? = nil, guest: Player? = nil, account: Player? = nil, untilMs: Int? = nil, reason: String? = nil, store: String? = nil) {
        self.type = type
        self.title = title
        self.status = status
        self.detail = detail
        self.code = code
        self.errors = errors
        self.merge = merge
        self.guest = guest
        self.account = account
        self.untilMs = untilMs
        self.reason = reason
        self.store = store
    }
}

public struct GameSummary: Codable, Equatable, Sendable {
    public var id: String
    public var queue: String
    /// Milliseconds since 1970.
    public var endedMs: Int
    public var reason: String
    public var ranking: [Ranking]

    public struct Ranking: Codable, Equatable, Sendable {
        public var player: String
        public var score: Int
        public var rank: Int
        public var rating: Int?
        public var ratingChange: Int?
        /// Present while the rating is uncertain.
        public var provisional: JSONValue?
        /// Present if it is a bot.
        public var bot: JSONValue?
        public var counts: Bool?

        enum CodingKeys: String, CodingKey {
            case player = "player"
            case score = "score"
            case rank = "rank"
            case rating = "rating"
            case ratingChange = "rating_change"
            case provisional = "provisional"
            case bot = "bot"
            case counts = "counts"
        }

        public init(player: String, score: Int, rank: Int, rating: Int? = nil, ratingChange: Int? = nil, provisional: JSONValue? = nil, bot: JSONValue? = nil, counts: Bool? = nil) {
            self.player = player
            self.score = score
            self.rank = rank
            self.rating = rating
            self.ratingChange = ratingChange
            self.provisional = provisional
            self.bot = bot
            self.counts = counts
        }
    }

    enum CodingKeys: String, CodingKey {
        case id = "id"
        case queue = "queue"
        case endedMs = "ended_ms"
        case reason = "reason"
        case ranking = "ranking"
    }

    public init(id: String, queue: String, endedMs: Int, reason: String, ranking: [Ranking]) {
        self.id = id
        self.queue = queue
        self.endedMs = endedMs
        self.reason = reason
        self.ranking = ranking
    }
}

public struct GameRecord: Codable, Equatable, Sendable {
    public var id: String
    public var queue: String
    /// Milliseconds since 1970.
    public var endedMs: Int
    public var reason: String
    public var ranking: [Ranking]
    public var rounds: [Rounds]

    public struct Ranking: Codable, Equatable, Sendable {
        public var player: String
        public var score: Int
        public var rank: Int
        public var rating: Int?
        public var ratingChange: Int?
        /// Present while the rating is uncertain.
        public var provisional: JSONValue?
        /// Present if it is a bot.
        public var bot: JSONValue?
        public var counts: Bool?

        enum CodingKeys: String, CodingKey {
            case player = "player"
            case score = "score"
            case rank = "rank"
            case rating = "rating"
            case ratingChange = "rating_change"
            case provisional = "provisional"
            case bot = "bot"
            case counts = "counts"
        }

        public init(player: String, score: Int, rank: Int, rating: Int? = nil, ratingChange: Int? = nil, provisional: JSONValue? = nil, bot: JSONValue? = nil, counts: Bool? = nil) {
            self.player = player
            self.score = score
            self.rank = rank
            self.rating = rating
            self.ratingChange = ratingChange
            self.provisional = provisional
            self.bot = bot
            self.counts = counts
        }
    }

    public struct Rounds: Codable, Equatable, Sendable {
        public var text: String
        public var choices: [String]
        public var category: String
        public var difficulty: String
        public var correct: Int
        public var answers: [String: Answers]

        public struct Answers: Codable, Equatable, Sendable {
            public var choice: Int
            public var ms: Int
            public var points: Int

            enum CodingKeys: String, CodingKey {
                case choice = "choice"
                case ms = "ms"
                case points = "points"
            }

            public init(choice: Int, ms: Int, points: Int) {
                self.choice = choice
                self.ms = ms
                self.points = points
            }
        }

        enum CodingKeys: String, CodingKey {
            case text = "text"
            case choices = "choices"
            case category = "category"
            case difficulty = "difficulty"
            case correct = "correct"
            case answers = "answers"
        }

        public init(text: String, choices: [String], category: String, difficulty: String, correct: Int, answers: [String: Answers]) {
            self.text = text
            self.choices = choices
            self.category = category
            self.difficulty = difficulty
            self.correct = correct
            self.answers = answers
        }
    }

    enum CodingKeys: String, CodingKey {
        case id = "id"
        case queue = "queue"
        case endedMs = "ended_ms"
        case reason = "reason"
        case ranking = "ranking"
        case rounds = "rounds"
    }

    public init(id: String, queue: String, endedMs: Int, reason: String, ranking: [Ranking], rounds: [Rounds]) {
        self.id = id
        self.queue = queue
        self.endedMs = endedMs
        self.reason = reason
        self.ranking = ranking
        self.rounds = rounds
    }
}

public struct GameList: Codable, Equatable, Sendable {
    public var games: [GameSummary]
    public var cursor: String?

    enum CodingKeys: String, CodingKey {
        case games = "games"
        case cursor = "cursor"
    }

    public init(games: [GameSummary], cursor: String? = nil) {
        self.games = games
        self.cursor = cursor
    }
}

public struct Leaderboard: Codable, Equatable, Sendable {
    public var leaderboard: String
    public var period: String?
    public var total: Int
    public var entries: [Entries]

    public struct Entries: Codable, Equatable, Sendable {
        public var rank: Int
        public var username: String
        public var value: Double
        /// Present while the rating is uncertain.
        public var provisional: JSONValue?

        enum CodingKeys: String, CodingKey {
            case rank = "rank"
            case username = "username"
            case value = "value"
            case provisional = "provisional"
        }

        public init(rank: Int, username: String, value: Double, provisional: JSONValue? = nil) {
            self.rank = rank
            self.username = username
            self.value = value
            self.provisional = provisional
        }
    }

    enum CodingKeys: String, CodingKey {
        case leaderboard = "leaderboard"
        case period = "period"
        case total = "total"
        case entries = "entries"
    }

    public init(leaderboard: String, period: String? = nil, total: Int, entries: [Entries]) {
        self.leaderboard = leaderboard
        self.period = period
        self.total = total
        self.entries = entries
    }
}

public struct QueueList: Codable, Equatable, Sendable {
    public var queues: [Queues]

    public struct Queues: Codable, Equatable, Sendable {
        public var description: String?
        public var players: Players
        public var match: String?
        public var days: Int?
        public var lateJoin: Bool?
        public var rematchSeconds: Double?
        public var draw: String?
        public var attempts: Int?
        public var bots: Bots?
        public var window: Double?
        public var widen: Double?
        public var fillSeconds: Double?
        public var waitSeconds: Double?
        public var rounds: Int?
        public var startSeconds: Double?
        public var answerSeconds: Double?
        public var revealSeconds: Double?
        public var totalSeconds: Double?
        public var lives: Int?
        public var seatSeconds: Double?
        public var rated: Bool?
        public var scoring: Scoring?
        public var onExit: String?
        public var categories: [String]?
        public var difficulties: [String]?
        public var name: String
        public var waiting: Int
        public var playing: Int

        public struct Players: Codable, Equatable, Sendable {
            public var min: Int
            public var max: Int

            enum CodingKeys: String, CodingKey {
                case min = "min"
                case max = "max"
            }

            public init(min: Int, max: Int) {
                self.min = min
                self.max = max
            }
        }

        public struct Bots: Codable, Equatable, Sendable {
            public var afterSeconds: Double
            public var skill: JSONValue?

            enum CodingKeys: String, CodingKey {
                case afterSeconds = "after_seconds"
                case skill = "skill"
            }

            public init(afterSeconds: Double, skill: JSONValue? = nil) {
                self.afterSeconds = afterSeconds
                self.skill = skill
            }
        }

        public struct Scoring: Codable, Equatable, Sendable {
            public var correct: Int
            public var speed: Int

            enum CodingKeys: String, CodingKey {
                case correct = "correct"
                case speed = "speed"
            }

            public init(correct: Int, speed: Int) {
                self.correct = correct
                self.speed = speed
            }
        }

        enum CodingKeys: String, CodingKey {
            case description = "description"
            case players = "players"
            case match = "match"
            case days = "days"
            case lateJoin = "late_join"
            case rematchSeconds = "rematch_seconds"
            case draw = "draw"
            case attempts = "attempts"
            case bots = "bots"
            case window = "window"
            case widen = "widen"
            case fillSeconds = "fill_seconds"
            case waitSeconds = "wait_seconds"
            case rounds = "rounds"
            case startSeconds = "start_seconds"
            case answerSeconds = "answer_seconds"
            case revealSeconds = "reveal_seconds"
            case totalSeconds = "total_seconds"
            case lives = "lives"
            case seatSeconds = "seat_seconds"
            case rated = "rated"
            case scoring = "scoring"
            case onExit = "on_exit"
            case categories = "categories"
            case difficulties = "difficulties"
            case name = "name"
            case waiting = "waiting"
            case playing = "playing"
        }

        public init(description: String? = nil, players: Players, match: String? = nil, days: Int? = nil, lateJoin: Bool? = nil, rematchSeconds: Double? = nil, draw: String? = nil, attempts: Int? = nil, bots: Bots? = nil, window: Double? = nil, widen: Double? = nil, fillSeconds: Double? = nil, waitSeconds: Double? = nil, rounds: Int? = nil, startSeconds: Double? = nil, answerSeconds: Double? = nil, revealSeconds: Double? = nil, totalSeconds: Double? = nil, lives: Int? = nil, seatSeconds: Double? = nil, rated: Bool? = nil, scoring: Scoring? = nil, onExit: String? = nil, categories: [String]? = nil, difficulties: [String]? = nil, name: String, waiting: Int, playing: Int) {
            self.description = description
            self.players = players
            self.match = match
            self.days = days
            self.lateJoin = lateJoin
            self.rematchSeconds = rematchSeconds
            self.draw = draw
            self.attempts = attempts
            self.bots = bots
            self.window = window
            self.widen = widen
            self.fillSeconds = fillSeconds
            self.waitSeconds = waitSeconds
            self.rounds = rounds
            self.startSeconds = startSeconds
            self.answerSeconds = answerSeconds
            self.revealSeconds = revealSeconds
            self.totalSeconds = totalSeconds
            self.lives = lives
            self.seatSeconds = seatSeconds
            self.rated = rated
            self.scoring = scoring
            self.onExit = onExit
            self.categories = categories
            self.difficulties = difficulties
            self.name = name
            self.waiting = waiting
            self.playing = playing
        }
    }

    enum CodingKeys: String, CodingKey {
        case queues = "queues"
    }

    public init(queues: [Queues]) {
        self.queues = queues
    }
}

public struct Rules: Codable, Equatable, Sendable {
    public var players: Players?
    public var match: String?
    public var days: Int?
    public var lateJoin: Bool?
    public var rematchSeconds: Double?
    public var draw: String?
    public var attempts: Int?
    public var bots: Bots?
    public var window: Double?
    public var widen: Double?
    public var fillSeconds: Double?
    public var waitSeconds: Double?
    public var rounds: Int?
    public var startSeconds: Double?
    public var answerSeconds: Double?
    public var revealSeconds: Double?
    public var totalSeconds: Double?
    public var lives: Int?
    public var seatSeconds: Double?
    public var rated: Bool?
    public var scoring: Scoring?
    public var onExit: String?
    public var categories: [String]?
    public var difficulties: [String]?

    public struct Players: Codable, Equatable, Sendable {
        public var min: Int
        public var max: Int

        enum CodingKeys: String, CodingKey {
            case min = "min"
            case max = "max"
        }

        public init(min: Int, max: Int) {
            self.min = min
            self.max = max
        }
    }

    public struct Bots: Codable, Equatable, Sendable {
        public var afterSeconds: Double
        public var skill: JSONValue?

        enum CodingKeys: String, CodingKey {
            case afterSeconds = "after_seconds"
            case skill = "skill"
        }

        public init(afterSeconds: Double, skill: JSONValue? = nil) {
            self.afterSeconds = afterSeconds
            self.skill = skill
        }
    }

    public struct Scoring: Codable, Equatable, Sendable {
        public var correct: Int
        public var speed: Int

        enum CodingKeys: String, CodingKey {
            case correct = "correct"
            case speed = "speed"
        }

        public init(correct: Int, speed: Int) {
            self.correct = correct
            self.speed = speed
        }
    }

    enum CodingKeys: String, CodingKey {
        case players = "players"
        case match = "match"
        case days = "days"
        case lateJoin = "late_join"
        case rematchSeconds = "rematch_seconds"
        case draw = "draw"
        case attempts = "attempts"
        case bots = "bots"
        case window = "window"
        case widen = "widen"
        case fillSeconds = "fill_seconds"
        case waitSeconds = "wait_seconds"
        case rounds = "rounds"
        case startSeconds = "start_seconds"
        case answerSeconds = "answer_seconds"
        case revealSeconds = "reveal_seconds"
        case totalSeconds = "total_seconds"
        case lives = "lives"
        case seatSeconds = "seat_seconds"
        case rated = "rated"
        case scoring = "scoring"
        case onExit = "on_exit"
        case categories = "categories"
        case difficulties = "difficulties"
    }

    public init(players: Players? = nil, match: String? = nil, days: Int? = nil, lateJoin: Bool? = nil, rematchSeconds: Double? = nil, draw: String? = nil, attempts: Int? = nil, bots: Bots? = nil, window: Double? = nil, widen: Double? = nil, fillSeconds: Double? = nil, waitSeconds: Double? = nil, rounds: Int? = nil, startSeconds: Double? = nil, answerSeconds: Double? = nil, revealSeconds: Double? = nil, totalSeconds: Double? = nil, lives: Int? = nil, seatSeconds: Double? = nil, rated: Bool? = nil, scoring: Scoring? = nil, onExit: String? = nil, categories: [String]? = nil, difficulties: [String]? = nil) {
        self.players = players
        self.match = match
        self.days = days
        self.lateJoin = lateJoin
        self.rematchSeconds = rematchSeconds
        self.draw = draw
        self.attempts = attempts
        self.bots = bots
        self.window = window
        self.widen = widen
        self.fillSeconds = fillSeconds
        self.waitSeconds = waitSeconds
        self.rounds = rounds
        self.startSeconds = startSeconds
        self.answerSeconds = answerSeconds
        self.revealSeconds = revealSeconds
        self.totalSeconds = totalSeconds
        self.lives = lives
        self.seatSeconds = seatSeconds
        self.rated = rated
        self.scoring = scoring
        self.onExit = onExit
        self.categories = categories
        self.difficulties = difficulties
    }
}

public struct Room: Codable, Equatable, Sendable {
    public var queue: String
    public var settings: Rules
    public var code: String
    public var host: String
    public var players: [Player]
    public var connected: [String]
    public var locked: Bool
    public var state: String

    enum CodingKeys: String, CodingKey {
        case queue = "queue"
        case settings = "settings"
        case code = "code"
        case host = "host"
        case players = "players"
        case connected = "connected"
        case locked = "locked"
        case state = "state"
    }

    public init(queue: String, settings: Rules, code: String, host: String, players: [Player], connected: [String], locked: Bool, state: String) {
        self.queue = queue
        self.settings = settings
        self.code = code
        self.host = host
        self.players = players
        self.connected = connected
        self.locked = locked
        self.state = state
    }
}

public struct ReportReceipt: Codable, Equatable, Sendable {
    public var id: String

    enum CodingKeys: String, CodingKey {
        case id = "id"
    }

    public init(id: String) {
        self.id = id
    }
}

public struct BlockList: Codable, Equatable, Sendable {
    public var blocks: [Blocks]

    public struct Blocks: Codable, Equatable, Sendable {
        public var username: String
        /// Seconds since 1970.
        public var blockedAt: Int

        enum CodingKeys: String, CodingKey {
            case username = "username"
            case blockedAt = "blocked_at"
        }

        public init(username: String, blockedAt: Int) {
            self.username = username
            self.blockedAt = blockedAt
        }
    }

    enum CodingKeys: String, CodingKey {
        case blocks = "blocks"
    }

    public init(blocks: [Blocks]) {
        self.blocks = blocks
    }
}

public struct NewChallenge: Codable, Equatable, Sendable {
    public var code: String
    /// Seconds since 1970.
    public var expiresAt: Int

    enum CodingKeys: String, CodingKey {
        case code = "code"
        case expiresAt = "expires_at"
    }

    public init(code: String, expiresAt: Int) {
        self.code = code
        self.expiresAt = expiresAt
    }
}

public struct Challenge: Codable, Equatable, Sendable {
    public var code: String
    public var queue: String
    public var owner: String
    /// Seconds since 1970.
    public var expiresAt: Int
    public var state: String
    public var players: [Players]
    /// Present if the caller has played it.
    public var rounds: [Rounds]?

    public struct Players: Codable, Equatable, Sendable {
        public var player: String
        public var state: String
        public var score: Int?
        /// Among those who have finished; equals share it.
        public var rank: Int?

        enum CodingKeys: String, CodingKey {
            case player = "player"
            case state = "state"
            case score = "score"
            case rank = "rank"
        }

        public init(player: String, state: String, score: Int? = nil, rank: Int? = nil) {
            self.player = player
            self.state = state
            self.score = score
            self.rank = rank
        }
    }

    /// Present if the caller has played it.
    public struct Rounds: Codable, Equatable, Sendable {
        public var text: String
        public var choices: [String]
        public var category: String
        public var difficulty: String
        public var correct: Int
        public var answers: [String: Answers]

        public struct Answers: Codable, Equatable, Sendable {
            public var choice: Int
            public var ms: Int
            public var points: Int

            enum CodingKeys: String, CodingKey {
                case choice = "choice"
                case ms = "ms"
                case points = "points"
            }

            public init(choice: Int, ms: Int, points: Int) {
                self.choice = choice
                self.ms = ms
                self.points = points
            }
        }

        enum CodingKeys: String, CodingKey {
            case text = "text"
            case choices = "choices"
            case category = "category"
            case difficulty = "difficulty"
            case correct = "correct"
            case answers = "answers"
        }

        public init(text: String, choices: [String], category: String, difficulty: String, correct: Int, answers: [String: Answers]) {
            self.text = text
            self.choices = choices
            self.category = category
            self.difficulty = difficulty
            self.correct = correct
            self.answers = answers
        }
    }

    enum CodingKeys: String, CodingKey {
        case code = "code"
        case queue = "queue"
        case owner = "owner"
        case expiresAt = "expires_at"
        case state = "state"
        case players = "players"
        case rounds = "rounds"
    }

    public init(code: String, queue: String, owner: String, expiresAt: Int, state: String, players: [Players], rounds: [Rounds]? = nil) {
        self.code = code
        self.queue = queue
        self.owner = owner
        self.expiresAt = expiresAt
        self.state = state
        self.players = players
        self.rounds = rounds
    }
}

public struct ChallengeList: Codable, Equatable, Sendable {
    public var challenges: [Challenge]

    enum CodingKeys: String, CodingKey {
        case challenges = "challenges"
    }

    public init(challenges: [Challenge]) {
        self.challenges = challenges
    }
}

public struct Export: Codable, Equatable, Sendable {
    public var user: User
    public var sessions: [Sessions]
    public var ban: Ban?
    public var blocks: [Blocks]
    public var reports: [Reports]
    public var games: [GameRecord]
    public var questionsSeen: [String]
    public var challenges: [Challenge]

    public struct Sessions: Codable, Equatable, Sendable {
        /// Seconds since 1970.
        public var expiresAt: Int

        enum CodingKeys: String, CodingKey {
            case expiresAt = "expires_at"
        }

        public init(expiresAt: Int) {
            self.expiresAt = expiresAt
        }
    }

    public struct Ban: Codable, Equatable, Sendable {
        public var untilMs: Int
        public var reason: String

        enum CodingKeys: String, CodingKey {
            case untilMs = "until_ms"
            case reason = "reason"
        }

        public init(untilMs: Int, reason: String) {
            self.untilMs = untilMs
            self.reason = reason
        }
    }

    public struct Blocks: Codable, Equatable, Sendable {
        public var username: String
        /// Seconds since 1970.
        public var blockedAt: Int

        enum CodingKeys: String, CodingKey {
            case username = "username"
            case blockedAt = "blocked_at"
        }

        public init(username: String, blockedAt: Int) {
            self.username = username
            self.blockedAt = blockedAt
        }
    }

    public struct Reports: Codable, Equatable, Sendable {
        public var target: String
        /// Seconds since 1970.
        public var reportedAt: Int

        enum CodingKeys: String, CodingKey {
            case target = "target"
            case reportedAt = "reported_at"
        }

        public init(target: String, reportedAt: Int) {
            self.target = target
            self.reportedAt = reportedAt
        }
    }

    enum CodingKeys: String, CodingKey {
        case user = "user"
        case sessions = "sessions"
        case ban = "ban"
        case blocks = "blocks"
        case reports = "reports"
        case games = "games"
        case questionsSeen = "questions_seen"
        case challenges = "challenges"
    }

    public init(user: User, sessions: [Sessions], ban: Ban? = nil, blocks: [Blocks], reports: [Reports], games: [GameRecord], questionsSeen: [String], challenges: [Challenge]) {
        self.user = user
        self.sessions = sessions
        self.ban = ban
        self.blocks = blocks
        self.reports = reports
        self.games = games
        self.questionsSeen = questionsSeen
        self.challenges = challenges
    }
}

public struct Health: Codable, Equatable, Sendable {
    public var status: String
    public var version: String?

    enum CodingKeys: String, CodingKey {
        case status = "status"
        case version = "version"
    }

    public init(status: String, version: String? = nil) {
        self.status = status
        self.version = version
    }
}

// MARK: - messages

/// What the server sends.
public enum ServerMessage: Equatable, Sendable {
    case queued(QueuedMessage)
    case cancelled(CancelledMessage)
    case room(RoomMessage)
    case start(StartMessage)
    case question(QuestionMessage)
    case answered(AnsweredMessage)
    case reveal(RevealMessage)
    case update(UpdateMessage)
    case userExit(UserExitMessage)
    case userReturn(UserReturnMessage)
    case end(EndMessage)
    case rematch(RematchMessage)
    case pong(PongMessage)
    case notice(NoticeMessage)
    case error(ErrorMessage)
    case emoji(EmojiMessage)
    /// A type that is newer than this client.
    case unknown(String)

    static func decode(_ data: Data) throws -> ServerMessage {
        let head = try JSONDecoder().decode(MessageHead.self, from: data)
        switch head.type {
        case "queued": return .queued(try JSONDecoder().decode(QueuedMessage.self, from: data))
        case "cancelled": return .cancelled(try JSONDecoder().decode(CancelledMessage.self, from: data))
        case "room": return .room(try JSONDecoder().decode(RoomMessage.self, from: data))
        case "start": return .start(try JSONDecoder().decode(StartMessage.self, from: data))
        case "question": return .question(try JSONDecoder().decode(QuestionMessage.self, from: data))
        case "answered": return .answered(try JSONDecoder().decode(AnsweredMessage.self, from: data))
        case "reveal": return .reveal(try JSONDecoder().decode(RevealMessage.self, from: data))
        case "update": return .update(try JSONDecoder().decode(UpdateMessage.self, from: data))
        case "user_exit": return .userExit(try JSONDecoder().decode(UserExitMessage.self, from: data))
        case "user_return": return .userReturn(try JSONDecoder().decode(UserReturnMessage.self, from: data))
        case "end": return .end(try JSONDecoder().decode(EndMessage.self, from: data))
        case "rematch": return .rematch(try JSONDecoder().decode(RematchMessage.self, from: data))
        case "pong": return .pong(try JSONDecoder().decode(PongMessage.self, from: data))
        case "notice": return .notice(try JSONDecoder().decode(NoticeMessage.self, from: data))
        case "error": return .error(try JSONDecoder().decode(ErrorMessage.self, from: data))
        case "emoji": return .emoji(try JSONDecoder().decode(EmojiMessage.self, from: data))
        default: return .unknown(head.type)
        }
    }
}

/// What tells messages apart, and puts them in order.
struct MessageHead: Codable {
    let type: String
    let game: String?
    let seq: Int?
    let id: JSONValue?
}

/// What a client sends.
public protocol ClientMessage: Encodable {}

/// The player waits in the queue.
public struct QueuedMessage: Codable, Equatable, Sendable {
    public var queue: String
    /// Time until `cancelled` if no game is found.
    public var timeoutMs: Int
    /// Time until the player can be matched. Present after games that they left before anybody had
    /// answered.
    public var delayMs: Int?

    enum CodingKeys: String, CodingKey {
        case queue = "queue"
        case timeoutMs = "timeout_ms"
        case delayMs = "delay_ms"
    }

    public init(queue: String, timeoutMs: Int, delayMs: Int? = nil) {
        self.queue = queue
        self.timeoutMs = timeoutMs
        self.delayMs = delayMs
    }
}

/// The player is out of the queue or the room, or has left the game.
public struct CancelledMessage: Codable, Equatable, Sendable {
    public var queue: String
    public var reason: String

    enum CodingKeys: String, CodingKey {
        case queue = "queue"
        case reason = "reason"
    }

    public init(queue: String, reason: String) {
        self.queue = queue
        self.reason = reason
    }
}

/// The private room that the player is in: the reply to `join`, and after each change. After `end`
/// the players are in their room again.
public struct RoomMessage: Codable, Equatable, Sendable {
    /// Six letters and digits by which friends join.
    public var code: String
    public var queue: String
    /// A username.
    public var host: String
    public var players: [Player]
    /// Usernames of the connected players.
    public var connected: [String]
    public var locked: Bool
    public var state: String
    public var settings: Rules

    enum CodingKeys: String, CodingKey {
        case code = "code"
        case queue = "queue"
        case host = "host"
        case players = "players"
        case connected = "connected"
        case locked = "locked"
        case state = "state"
        case settings = "settings"
    }

    public init(code: String, queue: String, host: String, players: [Player], connected: [String], locked: Bool, state: String, settings: Rules) {
        self.code = code
        self.queue = queue
        self.host = host
        self.players = players
        self.connected = connected
        self.locked = locked
        self.state = state
        self.settings = settings
    }
}

/// A game starts.
public struct StartMessage: Codable, Equatable, Sendable {
    public var game: String
    /// Counts the messages of this game to this player: 1, 2, 3, ...
    public var seq: Int
    public var queue: String
    public var players: [Player]
    public var rounds: Int
    /// Time until the first question.
    public var startsMs: Int
    /// With `total_seconds`: time left for all questions.
    public var totalMs: Int?
    /// With `lives`: how many lives are left.
    public var lives: Int?
    /// After a rematch; see there.
    public var series: [String: Int]?

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case queue = "queue"
        case players = "players"
        case rounds = "rounds"
        case startsMs = "starts_ms"
        case totalMs = "total_ms"
        case lives = "lives"
        case series = "series"
    }

    public init(game: String, seq: Int, queue: String, players: [Player], rounds: Int, startsMs: Int, totalMs: Int? = nil, lives: Int? = nil, series: [String: Int]? = nil) {
        self.game = game
        self.seq = seq
        self.queue = queue
        self.players = players
        self.rounds = rounds
        self.startsMs = startsMs
        self.totalMs = totalMs
        self.lives = lives
        self.series = series
    }
}

/// A new question. Answers are accepted from now on.
public struct QuestionMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    /// The number of the question, from 1.
    public var round: Int
    public var text: String
    public var choices: [String]
    public var category: String
    public var difficulty: String
    /// Time left to answer.
    public var answerMs: Int

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case round = "round"
        case text = "text"
        case choices = "choices"
        case category = "category"
        case difficulty = "difficulty"
        case answerMs = "answer_ms"
    }

    public init(game: String, seq: Int, round: Int, text: String, choices: [String], category: String, difficulty: String, answerMs: Int) {
        self.game = game
        self.seq = seq
        self.round = round
        self.text = text
        self.choices = choices
        self.category = category
        self.difficulty = difficulty
        self.answerMs = answerMs
    }
}

/// Another player has answered.
public struct AnsweredMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    public var round: Int
    public var player: String

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case round = "round"
        case player = "player"
    }

    public init(game: String, seq: Int, round: Int, player: String) {
        self.game = game
        self.seq = seq
        self.round = round
        self.player = player
    }
}

/// The question is closed. Shows the right answer, all answers and the scores.
public struct RevealMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    public var round: Int
    /// Index of the right choice.
    public var correct: Int
    /// By username. Players without an answer are missing.
    public var answers: [String: Answers]
    /// By username.
    public var scores: [String: Int]
    /// Time until the next question or the end.
    public var revealMs: Int
    public var totalMs: Int?
    public var lives: Int?

    /// By username. Players without an answer are missing.
    public struct Answers: Codable, Equatable, Sendable {
        public var choice: Int
        public var points: Int
        public var ms: Int

        enum CodingKeys: String, CodingKey {
            case choice = "choice"
            case points = "points"
            case ms = "ms"
        }

        public init(choice: Int, points: Int, ms: Int) {
            self.choice = choice
            self.points = points
            self.ms = ms
        }
    }

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case round = "round"
        case correct = "correct"
        case answers = "answers"
        case scores = "scores"
        case revealMs = "reveal_ms"
        case totalMs = "total_ms"
        case lives = "lives"
    }

    public init(game: String, seq: Int, round: Int, correct: Int, answers: [String: Answers], scores: [String: Int], revealMs: Int, totalMs: Int? = nil, lives: Int? = nil) {
        self.game = game
        self.seq = seq
        self.round = round
        self.correct = correct
        self.answers = answers
        self.scores = scores
        self.revealMs = revealMs
        self.totalMs = totalMs
        self.lives = lives
    }
}

/// The whole game as this player sees it. It is the reply to `check`, the first message after a
/// reconnect, and tells that another player has taken the seat of a bot.
public struct UpdateMessage: Codable, Equatable, Sendable {
    public var game: String
    /// The `seq` of the last message that this snapshot includes.
    public var seq: Int
    public var queue: String
    public var players: [Player]
    /// Usernames of the connected players.
    public var connected: [String]
    public var rounds: Int
    /// 0 before the first question.
    public var round: Int
    public var phase: String
    /// Time until this phase ends.
    public var leftMs: Int
    public var scores: [String: Int]
    public var totalMs: Int?
    public var lives: Int?
    public var series: [String: Int]?
    /// Present in the phases `question` and `reveal`, but not for a player who came after the
    /// question.
    public var question: Question?
    /// This player's answer to the question.
    public var choice: Int?
    /// Usernames of those who have answered it.
    public var answered: [String]?
    /// Present in the phase `reveal`: index of the right choice.
    public var correct: Int?
    /// Present in the phase `reveal`, in the same form as there.
    public var answers: JSONValue?

    /// Present in the phases `question` and `reveal`, but not for a player who came after the question.
    public struct Question: Codable, Equatable, Sendable {
        public var round: Int?
        public var text: String?
        public var choices: [String]?
        public var category: String?
        public var difficulty: String?

        enum CodingKeys: String, CodingKey {
            case round = "round"
            case text = "text"
            case choices = "choices"
            case category = "category"
            case difficulty = "difficulty"
        }

        public init(round: Int? = nil, text: String? = nil, choices: [String]? = nil, category: String? = nil, difficulty: String? = nil) {
            self.round = round
            self.text = text
            self.choices = choices
            self.category = category
            self.difficulty = difficulty
        }
    }

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case queue = "queue"
        case players = "players"
        case connected = "connected"
        case rounds = "rounds"
        case round = "round"
        case phase = "phase"
        case leftMs = "left_ms"
        case scores = "scores"
        case totalMs = "total_ms"
        case lives = "lives"
        case series = "series"
        case question = "question"
        case choice = "choice"
        case answered = "answered"
        case correct = "correct"
        case answers = "answers"
    }

    public init(game: String, seq: Int, queue: String, players: [Player], connected: [String], rounds: Int, round: Int, phase: String, leftMs: Int, scores: [String: Int], totalMs: Int? = nil, lives: Int? = nil, series: [String: Int]? = nil, question: Question? = nil, choice: Int? = nil, answered: [String]? = nil, correct: Int? = nil, answers: JSONValue? = nil) {
        self.game = game
        self.seq = seq
        self.queue = queue
        self.players = players
        self.connected = connected
        self.rounds = rounds
        self.round = round
        self.phase = phase
        self.leftMs = leftMs
        self.scores = scores
        self.totalMs = totalMs
        self.lives = lives
        self.series = series
        self.question = question
        self.choice = choice
        self.answered = answered
        self.correct = correct
        self.answers = answers
    }
}

/// A player has left, or has lost the connection.
public struct UserExitMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    public var player: String
    /// The player can return within this time; 0: they have left.
    public var returnsMs: Int

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case player = "player"
        case returnsMs = "returns_ms"
    }

    public init(game: String, seq: Int, player: String, returnsMs: Int) {
        self.game = game
        self.seq = seq
        self.player = player
        self.returnsMs = returnsMs
    }
}

/// A player has reconnected, or has joined a running game (`late_join`).
public struct UserReturnMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    public var player: String

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case player = "player"
    }

    public init(game: String, seq: Int, player: String) {
        self.game = game
        self.seq = seq
        self.player = player
    }
}

/// The game has ended.
public struct EndMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    /// The operator has ended it: `stopped` counts, `void` does not.
    public var reason: String
    public var ranking: [Ranking]
    /// With `rematch_seconds`: time to agree to play again.
    public var rematchMs: Int?
    /// See `rematch`.
    public var series: [String: Int]?

    public struct Ranking: Codable, Equatable, Sendable {
        public var player: String
        public var score: Int
        /// From 1. Equal scores have the same rank.
        public var rank: Int
        /// The new rating. Only in rated queues.
        public var rating: Int?
        public var ratingChange: Int?
        /// Present, and true, while the rating is uncertain.
        public var provisional: Bool?
        /// Present, and true, if it is a bot.
        public var bot: Bool?
        /// Present, and false, if the game changes no field of this player. That is so if nobody has
        /// answered a question (such a game is not kept either), if a bot has played, or if the player
        /// has met all of these opponents too often today.
        public var counts: Bool?

        enum CodingKeys: String, CodingKey {
            case player = "player"
            case score = "score"
            case rank = "rank"
            case rating = "rating"
            case ratingChange = "rating_change"
            case provisional = "provisional"
            case bot = "bot"
            case counts = "counts"
        }

        public init(player: String, score: Int, rank: Int, rating: Int? = nil, ratingChange: Int? = nil, provisional: Bool? = nil, bot: Bool? = nil, counts: Bool? = nil) {
            self.player = player
            self.score = score
            self.rank = rank
            self.rating = rating
            self.ratingChange = ratingChange
            self.provisional = provisional
            self.bot = bot
            self.counts = counts
        }
    }

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case reason = "reason"
        case ranking = "ranking"
        case rematchMs = "rematch_ms"
        case series = "series"
    }

    public init(game: String, seq: Int, reason: String, ranking: [Ranking], rematchMs: Int? = nil, series: [String: Int]? = nil) {
        self.game = game
        self.seq = seq
        self.reason = reason
        self.ranking = ranking
        self.rematchMs = rematchMs
        self.series = series
    }
}

/// Who wants to play the last game again, after each change. When all do, `start` follows. At the
/// end of the time it follows for those who do, if they are enough.
public struct RematchMessage: Codable, Equatable, Sendable {
    /// The game that has ended.
    public var game: String
    /// Usernames of those who have agreed.
    public var players: [String]
    /// Usernames of those who are connected.
    public var connected: [String]
    /// Usernames of those who are out: they declined or play elsewhere.
    public var declined: [String]
    /// Time left to agree; 0: there will be no rematch with this player.
    public var expiresMs: Int
    /// Of two players: the games that each has won of those in a row, by username.
    public var series: [String: Int]?

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case players = "players"
        case connected = "connected"
        case declined = "declined"
        case expiresMs = "expires_ms"
        case series = "series"
    }

    public init(game: String, players: [String], connected: [String], declined: [String], expiresMs: Int, series: [String: Int]? = nil) {
        self.game = game
        self.players = players
        self.connected = connected
        self.declined = declined
        self.expiresMs = expiresMs
        self.series = series
    }
}

/// The reply to `ping`.
public struct PongMessage: Codable, Equatable, Sendable {
    /// Time of the server, in ms since 1970.
    public var serverMs: Int
    public var clientMs: Double?

    enum CodingKeys: String, CodingKey {
        case serverMs = "server_ms"
        case clientMs = "client_ms"
    }

    public init(serverMs: Int, clientMs: Double? = nil) {
        self.serverMs = serverMs
        self.clientMs = clientMs
    }
}

/// A message from the operator to all players.
public struct NoticeMessage: Codable, Equatable, Sendable {
    public var code: String
    public var text: String
    /// In ms since 1970: when the maintenance begins, or until when the message holds.
    public var untilMs: Int

    enum CodingKeys: String, CodingKey {
        case code = "code"
        case text = "text"
        case untilMs = "until_ms"
    }

    public init(code: String, text: String, untilMs: Int) {
        self.code = code
        self.text = text
        self.untilMs = untilMs
    }
}

/// A message was refused. The connection stays open.
public struct ErrorMessage: Codable, Equatable, Sendable {
    /// A stable code, for programs.
    public var code: String
    /// What was wrong and what was expected, for people.
    public var message: String
    /// The `id` of the refused message.
    public var id: JSONValue?
    /// What is wrong, by field.
    public var errors: JSONValue?

    enum CodingKeys: String, CodingKey {
        case code = "code"
        case message = "message"
        case id = "id"
        case errors = "errors"
    }

    public init(code: String, message: String, id: JSONValue? = nil, errors: JSONValue? = nil) {
        self.code = code
        self.message = message
        self.id = id
        self.errors = errors
    }
}

/// Another player sent emoji.
public struct EmojiMessage: Codable, Equatable, Sendable {
    public var game: String
    public var seq: Int
    public var player: String
    public var emoji: String

    enum CodingKeys: String, CodingKey {
        case game = "game"
        case seq = "seq"
        case player = "player"
        case emoji = "emoji"
    }

    public init(game: String, seq: Int, player: String, emoji: String) {
        self.game = game
        self.seq = seq
        self.player = player
        self.emoji = emoji
    }
}

/// The player's answer. Only the first answer to a question counts.
public struct AnswerFields: ClientMessage, Equatable, Sendable {
    public let type = "answer"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// The round of the question.
    public var round: Int
    /// Index into `choices`, from 0.
    public var choice: Int
    /// Optional: must be the id of the current game.
    public var game: String?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case round = "round"
        case choice = "choice"
        case game = "game"
    }

    public init(id: JSONValue? = nil, round: Int, choice: Int, game: String? = nil) {
        self.id = id
        self.round = round
        self.choice = choice
        self.game = game
    }
}

/// Asks for an `update`.
public struct CheckFields: ClientMessage, Equatable, Sendable {
    public let type = "check"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
    }

    public init(id: JSONValue? = nil) {
        self.id = id
    }
}

/// A reaction. The opponents see it.
public struct EmojiFields: ClientMessage, Equatable, Sendable {
    public let type = "emoji"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    public var emoji: String

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case emoji = "emoji"
    }

    public init(id: JSONValue? = nil, emoji: String) {
        self.id = id
        self.emoji = emoji
    }
}

/// Asks for a `pong`, with which a client can measure the offset of its clock.
public struct PingFields: ClientMessage, Equatable, Sendable {
    public let type = "ping"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// The `pong` returns it unchanged.
    public var clientMs: Double?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case clientMs = "client_ms"
    }

    public init(id: JSONValue? = nil, clientMs: Double? = nil) {
        self.id = id
        self.clientMs = clientMs
    }
}

/// The player wants to play the last game again with the same players, or does not.
public struct RematchFields: ClientMessage, Equatable, Sendable {
    public let type = "rematch"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    public var accept: Bool

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case accept = "accept"
    }

    public init(id: JSONValue? = nil, accept: Bool) {
        self.id = id
        self.accept = accept
    }
}

/// Joins a queue on the same WebSocket, after `end` or `cancelled`.
public struct JoinFields: ClientMessage, Equatable, Sendable {
    public let type = "join"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// Optional: a queue. Default: the previous one.
    public var queue: String?
    /// Optional: the code of a private room or of a challenge, whose queue counts then. Without it,
    /// a queue with `match: room` opens a new room.
    public var code: String?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case queue = "queue"
        case code = "code"
    }

    public init(id: JSONValue? = nil, queue: String? = nil, code: String? = nil) {
        self.id = id
        self.queue = queue
        self.code = code
    }
}

/// Leaves the queue, the room, or the game for good.
public struct LeaveFields: ClientMessage, Equatable, Sendable {
    public let type = "leave"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
    }

    public init(id: JSONValue? = nil) {
        self.id = id
    }
}

/// The player finds a question wrong. It is one of the game they are in, or of the last one, and
/// its answer was revealed. Each player counts once.
public struct FlagFields: ClientMessage, Equatable, Sendable {
    public let type = "flag"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// The round of the question.
    public var round: Int

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case round = "round"
    }

    public init(id: JSONValue? = nil, round: Int) {
        self.id = id
        self.round = round
    }
}

/// The host of a room begins a game of all who are connected.
public struct BeginFields: ClientMessage, Equatable, Sendable {
    public let type = "begin"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
    }

    public init(id: JSONValue? = nil) {
        self.id = id
    }
}

/// The host sends a player away from the room, and out of its game. They can't come back.
public struct KickFields: ClientMessage, Equatable, Sendable {
    public let type = "kick"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// A username.
    public var player: String

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case player = "player"
    }

    public init(id: JSONValue? = nil, player: String) {
        self.id = id
        self.player = player
    }
}

/// The host lets no new player into the room, or lets them in again.
public struct LockFields: ClientMessage, Equatable, Sendable {
    public let type = "lock"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    public var locked: Bool

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case locked = "locked"
    }

    public init(id: JSONValue? = nil, locked: Bool) {
        self.id = id
        self.locked = locked
    }
}

/// The host makes another player the host.
public struct PassFields: ClientMessage, Equatable, Sendable {
    public let type = "pass"
    /// Repeated in an `error` about this message.
    public var id: JSONValue?
    /// A username.
    public var player: String

    enum CodingKeys: String, CodingKey {
        case type = "type"
        case id = "id"
        case player = "player"
    }

    public init(id: JSONValue? = nil, player: String) {
        self.id = id
        self.player = player
    }
}

extension JoinFields {
    var query: [String: String?] { ["code": code.map { "\($0)" }] }
}

/// The codes of errors, over HTTP and in `error` messages.
public let triviaErrorCodes: Set<String> = ["bad_request", "bad_json", "not_authenticated", "bad_credentials", "bad_id_token", "bad_merge_token", "bad_code", "banned", "wrong_password", "sign_in_again", "origin_refused", "not_found", "method_not_allowed", "body_timeout", "unknown_code", "expired_code", "already_reported", "blocks_full", "has_account", "not_a_guest", "identity_taken", "in_game", "provider_linked", "last_sign_in", "ambiguous", "too_large", "unsupported_media_type", "invalid", "app_too_old", "upgrade_required", "malformed_code", "yourself", "too_many_attempts", "head_too_large", "registration_closed", "queue_closed", "maintenance", "no_mail", "provider_unavailable", "guests_full", "reports_full", "internal", "unavailable", "username_taken", "email_taken", "late_answer", "already_answered", "wrong_round", "not_revealed", "wrong_game", "no_such_choice", "not_playing", "unknown_queue", "queue_full", "already_played", "code_needed", "own_challenge", "challenge_played", "challenge_full", "room_full", "room_locked", "kicked", "rematch_over", "not_in_room", "not_host", "room_plays", "too_few_players", "no_such_player", "not_text", "too_fast", "bad_message", "unknown_type", "invalid_message", "wrong_state"]

/// The queues of the server.
public let triviaQueues = ["random", "rated", "party", "solo", "daily", "friends", "challenge"]

// MARK: - HTTP

/// An error of the server, or of the way to it (`status` 0, `code` "network").
public struct TriviaError: Error, Equatable, Sendable {
    public let status: Int
    public let code: String
    public let detail: String
    /// What is wrong, by field.
    public let errors: [String: [String]]
    /// Seconds to wait before another try; 0 if the server names none.
    public let retryAfter: Int
    /// All that the server says: `merge`, `guest` and `account` of `identity_taken`, the end of a ban.
    public var problem: Problem? = nil
}

/// A player's account on a server. `onToken` gets each new token, to be kept, and nil when the session has ended.
/// The server is told the name of the app and its version, if they are given, and may require a newer version.
public final class Trivia: @unchecked Sendable {
    public let url: URL
    let app: (name: String, version: String)?
    private let onToken: @Sendable (String?) -> Void
    private let session: URLSession
    private let lock = NSLock()
    private var kept: String?

    public init(
        url: URL, token: String? = nil, timeout: TimeInterval = 15,
        app: (name: String, version: String)? = nil,
        onToken: @escaping @Sendable (String?) -> Void = { _ in }
    ) {
        self.url = url
        self.kept = token
        self.app = app
        self.onToken = onToken
        let configuration = URLSessionConfiguration.ephemeral
        configuration.timeoutIntervalForRequest = timeout
        self.session = URLSession(configuration: configuration)
    }

    public var token: String? {
        lock.lock()
        defer { lock.unlock() }
        return kept
    }

    /// Joins a queue, or resumes the game in progress. Handlers run on the main thread.
    @MainActor
    public func play(queue: String, fields: JoinFields = JoinFields()) -> Play {
        Play(trivia: self, queue: queue, fields: fields)
    }

    /// Keeps the token of a session, or forgets it.
    public func setToken(_ token: String?) {
        lock.lock()
        let isNew = token != kept
        kept = token
        lock.unlock()
        if isNew { onToken(token) }
    }

    /// Creates an account and signs in. It can be repeated if the reply was lost.
    public func register(_ body: NewUser) async throws -> Session {
        let session: Session = try await request("POST", "/auth/register", body: body)
        setToken(session.token)
        return session
    }

    /// Creates a guest, or signs in the same guest again (200).
    public func guest(_ body: Guest) async throws -> Session {
        let session: Session = try await request("POST", "/auth/guest", body: body)
        setToken(session.token)
        return session
    }

    /// Gives a guest an account. They keep everything, also their username if they send none.
    public func upgrade(_ body: Upgrade) async throws -> Upgraded {
        return try await request("POST", "/auth/upgrade", body: body)
    }

    /// Mails a code for a new password, if the account exists and has an address.
    public func recover(_ body: Recovery) async throws {
        try await send("POST", "/auth/recover", body: body)
    }

    /// Sets a new password with a code, ends all sessions and signs in.
    public func reset(_ body: Reset) async throws -> Session {
        let session: Session = try await request("POST", "/auth/reset", body: body)
        setToken(session.token)
        return session
    }

    /// Sends a code that confirms an address: the caller's present address or a new one.
    public func sendConfirmation(_ body: ConfirmationMail) async throws {
        try await send("POST", "/auth/confirm/send", body: body)
    }

    /// Confirms the address that a code was sent to. It becomes the caller's.
    public func confirm(_ body: Confirmation) async throws {
        try await send("POST", "/auth/confirm", body: body)
    }

    /// Signs in.
    public func login(_ body: Login) async throws -> Session {
        let session: Session = try await request("POST", "/auth/login", body: body)
        setToken(session.token)
        return session
    }

    /// Ends this session.
    public func logout() async throws {
        try await send("POST", "/auth/logout")
        setToken(nil)
    }

    /// Ends all sessions of the caller, on every device.
    public func endSessions() async throws {
        try await send("DELETE", "/auth/sessions")
        setToken(nil)
    }

    /// Changes the password and ends all other sessions.
    public func changePassword(_ body: PasswordChange) async throws {
        try await send("POST", "/auth/password", body: body)
    }

    /// Returns the caller's account.
    public func readMe() async throws -> User {
        return try await request("GET", "/users/me")
    }

    /// Changes fields of the caller's account. A new sign-in name takes the present password.
    public func changeMe(_ body: UserChanges) async throws -> User {
        return try await request("PATCH", "/users/me", body: body)
    }

    /// Erases the caller's account and all personal data.
    public func eraseMe(_ body: PasswordConfirmation) async throws {
        try await send("DELETE", "/users/me", body: body)
        setToken(nil)
    }

    /// Returns all data that is stored about the caller.
    public func exportMe() async throws -> Export {
        return try await request("GET", "/users/me/export")
    }

    /// Returns the caller's finished games, newest first.
    public func myGames(limit: Int? = nil, cursor: String? = nil) async throws -> GameList {
        return try await request("GET", "/users/me/games", query: ["limit": limit.map { "\($0)" }, "cursor": cursor.map { "\($0)" }])
    }

    /// Reports a player or a question to the operator, once each.
    public func report(_ body: Report) async throws -> ReportReceipt {
        return try await request("POST", "/reports", body: body)
    }

    /// Returns the public fields of a player; 404 if caller or player has blocked the other.
    public func readUser(username: String) async throws -> Player {
        return try await request("GET", "/users/\(part(username))")
    }

    /// Blocks a player: neither meets the other in a queue, or gets messages of the other.
    public func blockUser(username: String) async throws {
        try await send("PUT", "/users/\(part(username))/block")
    }

    /// Lifts the caller's block of a player, if there is one.
    public func liftBlock(username: String) async throws {
        try await send("DELETE", "/users/\(part(username))/block")
    }

    /// Returns the players whom the caller has blocked, the latest first.
    public func myBlocks() async throws -> BlockList {
        return try await request("GET", "/users/me/blocks")
    }

    /// Returns a finished game of the caller with all its rounds.
    public func readGame(id: String) async throws -> GameRecord {
        return try await request("GET", "/games/\(part(id))")
    }

    /// Returns a page of a leaderboard, highest value first.
    public func readLeaderboard(name: String, limit: Int? = nil, offset: Int? = nil, around: String? = nil) async throws -> Leaderboard {
        return try await request("GET", "/leaderboards/\(part(name))", query: ["limit": limit.map { "\($0)" }, "offset": offset.map { "\($0)" }, "around": around.map { "\($0)" }])
    }

    /// Returns the queues: their rules, and how many players wait and play.
    public func readQueues() async throws -> QueueList {
        return try await request("GET", "/queues")
    }

    /// Makes a challenge, which the caller and their friends play by its code.
    public func makeChallenge(_ body: ChallengeQueue) async throws -> NewChallenge {
        return try await request("POST", "/challenges", body: body)
    }

    /// Returns the challenges that the caller has made or played, open and finished ones.
    public func myChallenges() async throws -> ChallengeList {
        return try await request("GET", "/challenges")
    }

    /// Returns a challenge, with its rounds once the caller has played it.
    public func readChallenge(code: String) async throws -> Challenge {
        return try await request("GET", "/challenges/\(part(code))")
    }

    /// Returns a private room, for the preview of a link to it.
    public func readRoom(code: String) async throws -> Room {
        return try await request("GET", "/rooms/\(part(code))")
    }

    /// Tells that the process answers, and its version.
    public func live() async throws -> Health {
        return try await request("GET", "/health/live")
    }

    /// Tells whether the server can serve players: Redis answers and no restart is under way.
    public func ready() async throws -> Health {
        return try await request("GET", "/health/ready")
    }

    private func request<Answer: Decodable>(
        _ method: String, _ path: String, query: [String: String?] = [:], body: (any Encodable)? = nil
    ) async throws -> Answer {
        let data = try await send(method, path, query: query, body: body)
        return try JSONDecoder().decode(Answer.self, from: data)
    }

    @discardableResult
    private func send(
        _ method: String, _ path: String, query: [String: String?] = [:], body: (any Encodable)? = nil
    ) async throws -> Data {
        var request = URLRequest(url: address(path, query))
        let sent = token
        request.httpMethod = method
        request.setValue("application/json", forHTTPHeaderField: "Accept")
        if let app {
            request.setValue(app.name, forHTTPHeaderField: "X-App")
            request.setValue(app.version, forHTTPHeaderField: "X-Version")
        }
        if let sent { request.setValue("Bearer \(sent)", forHTTPHeaderField: "Authorization") }
        if let body {
            request.setValue("application/json", forHTTPHeaderField: "Content-Type")
            request.httpBody = try JSONEncoder().encode(body)
        }
        let data: Data
        let response: URLResponse
        do {
            (data, response) = try await session.data(for: request)
        } catch {
            let detail = "no answer from \(url): \(error.localizedDescription)"
            throw TriviaError(status: 0, code: "network", detail: detail, errors: [:], retryAfter: 0)
        }
        let answer = response as? HTTPURLResponse
        let status = answer?.statusCode ?? 0
        if (200..<300).contains(status) { return data }
        // A proxy in front may answer in a form of its own.
        let problem = try? JSONDecoder().decode(Problem.self, from: data)
        let code = problem?.code ?? "internal"
        if code == "not_authenticated" && sent == token { setToken(nil) }
        throw TriviaError(
            status: status, code: code, detail: problem?.detail ?? "the server answered \(status)",
            errors: problem?.errors ?? [:],
            retryAfter: Int(answer?.value(forHTTPHeaderField: "Retry-After") ?? "") ?? 0, problem: problem)
    }

    private func address(_ path: String, _ query: [String: String?]) -> URL {
        var parts = URLComponents(url: url, resolvingAgainstBaseURL: false)!
        parts.percentEncodedPath += path
        let items = query.compactMap { name, value in value.map { URLQueryItem(name: name, value: $0) } }
        if !items.isEmpty { parts.queryItems = items }
        return parts.url!
    }

    func socketAddress(queue: String, query: [String: String?]) -> URL {
        let mine: [String: String?] = app.map { ["app": $0.name, "version": $0.version] } ?? [:]
        let url = address("/game/\(part(queue))", query.merging(mine) { _, own in own })
        var parts = URLComponents(url: url, resolvingAgainstBaseURL: false)!
        parts.scheme = parts.scheme == "https" ? "wss" : "ws"
        return parts.url!
    }
}

private func part(_ text: String) -> String {
    let plain = CharacterSet.alphanumerics.union(CharacterSet(charactersIn: "-._~"))
    return text.addingPercentEncoding(withAllowedCharacters: plain) ?? text
}

// MARK: - play

/// What is known of the connection.
public enum Link: Equatable, Sendable {
    case connecting
    case online
    /// The next try comes after this time.
    case waiting(seconds: Double)
    /// `detail` is what the server says of it; for `outdated`, the address of a new version.
    case closed(CloseReason, detail: String)
}

/// Why a connection is closed for good.
public enum CloseReason: Sendable {
    /// The game or the wait for one has ended, or `close` was called. `join` connects again.
    case done
    /// The session has ended. Sign in again.
    case signedOut
    /// The player plays on another device.
    case replaced
    /// The player may not play.
    case banned
    /// The app is too old.
    case outdated
    /// The server does not understand this client, or has no such queue.
    case refused
}

/// What happens. `settle`: the result is being computed.
public enum Phase: String, Sendable {
    case none, queued, start, question, reveal, settle, end, cancelled
}

public struct Answer: Equatable, Sendable, Codable {
    public let choice: Int
    public let points: Int
    public let ms: Int
}

public struct QuestionView: Equatable, Sendable {
    public let round: Int
    public let text: String
    public let choices: [String]
    public let category: String
    public let difficulty: String
}

/// The game as this player knows it.
public struct Game: Equatable, Sendable {
    public var phase = Phase.none
    public var id = ""
    public var players: [Player] = []
    public var rounds = 0
    public var round = 0
    public var question: QuestionView?
    /// This player's answer to the question: an index into its choices.
    public var choice: Int?
    /// The right choice, once it is revealed.
    public var correct: Int?
    /// Usernames of others who have answered.
    public var answered: [String] = []
    /// All answers, once they are revealed.
    public var answers: [String: Answer] = [:]
    public var scores: [String: Int] = [:]
    /// Usernames of players without a connection.
    public var away: Set<String> = []
    public var end: EndMessage?
    public var reason = ""
}

private let finalCodes: [Int: CloseReason] = [
    1008: .refused, 4400: .refused, 4401: .signedOut, 4403: .banned, 4409: .replaced, 4413: .refused,
    4426: .outdated,
]
private let finalStatuses: [Int: CloseReason] = [401: .signedOut, 403: .refused, 404: .refused, 426: .outdated]
private let restartCode = 1012
private let busyCodes: Set<Int> = [1013, 4429]
private let silence = 20.0  // seconds after which a `ping` asks whether the connection is alive
private let replyTime = 8.0  // seconds in which anything must arrive after a `ping`
private let connectTime = 10.0
private let maxPause = 15.0
private let busyPause = 6.0
private let retryAnswer = 0.5

/// A player's connection to the game. It reconnects by itself, and misses nothing.
@MainActor
public final class Play {
    /// The game as this player knows it.
    public private(set) var game = Game()
    /// The private room that the player is in: who is its host, who is there, whether it is locked.
    public private(set) var room: RoomMessage?
    public private(set) var link = Link.connecting
    /// Called at each message.
    public var onMessage: ((ServerMessage) -> Void)?
    /// Called after each change of the game or the connection: draw it anew.
    public var onChange: ((Game) -> Void)?
    /// Called after each change of the connection.
    public var onLink: ((Link) -> Void)?

    private let trivia: Trivia
    private var queue: String
    private var joinFields: JoinFields
    private let session: URLSession
    private let opener = Opener()
    private var socket: URLSessionWebSocketTask?
    private var isOpen = false
    private var timer: Task<Void, Never>?
    private var alive: Task<Void, Never>?
    private var wanted = true  // whether a lost connection is made again
    private var failures = 0
    private var joined = false  // whether the server has answered to the fields of the join
    private var seq = 0
    private var checking = false  // an `update` is on its way
    private var unsure: (game: String, round: Int, choice: Int)?
    private var sent = 0
    private var deadline = DispatchTime.now()

    init(trivia: Trivia, queue: String, fields: JoinFields) {
        self.trivia = trivia
        self.queue = queue
        self.joinFields = fields
        self.session = URLSession(configuration: .ephemeral, delegate: opener, delegateQueue: nil)
        opener.opened = { [weak self] task in
            Task { @MainActor in self?.opened(task) }
        }
        connect()
    }

    deinit {
        session.invalidateAndCancel()
    }

    /// Seconds until the phase ends.
    public var left: Double {
        let now = DispatchTime.now()
        return deadline > now ? Double(deadline.uptimeNanoseconds - now.uptimeNanoseconds) / 1e9 : 0
    }

    /// Answers the open question. It arrives once, also when the connection breaks meanwhile.
    public func answer(_ choice: Int) {
        guard game.phase == .question, game.choice == nil else { return }
        game.choice = choice
        unsure = (game.id, game.round, choice)
        sendAnswer()
        onChange?(game)
    }

    /// Joins a queue, after `end` or `cancelled`. Without a name it is the previous one.
    public func join(queue: String? = nil, fields: JoinFields = JoinFields()) {
        self.queue = queue ?? self.queue
        joinFields = fields
        joinFields.queue = self.queue
        joined = false
        wanted = true
        if !sendNow(joinFields) { reconnect(after: 0) }
    }

    /// Leaves the queue, or the game for good.
    public func leave() {
        send(LeaveFields())
    }

    /// A reaction. The opponents see it.
    public func emoji(_ message: EmojiFields) {
        send(message)
    }

    /// The player wants to play the last game again with the same players, or does not.
    public func rematch(_ message: RematchFields) {
        send(message)
    }

    /// The player finds a question wrong. It is one of the game they are in, or of the last one,
    /// and its answer was revealed. Each player counts once.
    public func flag(_ message: FlagFields) {
        send(message)
    }

    /// The host of a room begins a game of all who are connected.
    public func begin(_ message: BeginFields) {
        send(message)
    }

    /// The host sends a player away from the room, and out of its game. They can't come back.
    public func kick(_ message: KickFields) {
        send(message)
    }

    /// The host lets no new player into the room, or lets them in again.
    public func lock(_ message: LockFields) {
        send(message)
    }

    /// The host makes another player the host.
    public func pass(_ message: PassFields) {
        send(message)
    }

    /// Sends a message. Without a connection it is dropped; `update` then shows the true state.
    public func send(_ message: some ClientMessage) {
        _ = sendNow(message)
    }

    /// Closes the connection. The seat in a game is kept for a while; `join` returns to it.
    public func close() {
        end(.done)
    }

    /// Call it when the app comes back from the background, or the network does.
    public func wake() {
        guard wanted else { return }
        if isOpen { probe() } else { reconnect(after: 0) }
    }

    // MARK: connection

    private func later(_ seconds: Double, _ work: @escaping @MainActor (Play) -> Void) -> Task<Void, Never> {
        Task { @MainActor [weak self] in
            try? await Task.sleep(nanoseconds: UInt64(seconds * 1e9))
            if let self, !Task.isCancelled { work(self) }
        }
    }

    private func connect() {
        timer?.cancel()
        drop()
        guard let token = trivia.token else { return end(.signedOut) }
        let join = joined ? [:] : joinFields.query
        let query: [String: String?] = room.map { ["code": $0.code] } ?? join
        let url = trivia.socketAddress(queue: queue, query: query)
        let task = session.webSocketTask(with: url, protocols: [triviaProtocol, "bearer.\(token)"])
        socket = task
        setLink(.connecting)
        timer = later(connectTime) { play in play.lost(task, code: 0, token: nil) }
        task.resume()
        listen(to: task, token: token)
    }

    private func opened(_ task: URLSessionWebSocketTask) {
        guard task === socket else { return }
        timer?.cancel()
        isOpen = true
        checking = false
        setLink(.online)
        watch()
    }

    private func listen(to task: URLSessionWebSocketTask, token: String) {
        task.receive { [weak self] result in
            Task { @MainActor in
                guard let self, task === self.socket else { return }
                switch result {
                case .success(.string(let text)):
                    self.receive(Data(text.utf8))
                    self.listen(to: task, token: token)
                case .success:
                    self.listen(to: task, token: token)
                case .failure:
                    let status = (task.response as? HTTPURLResponse)?.statusCode ?? 101
                    let code = task.closeCode == .invalid ? 0 : task.closeCode.rawValue
                    let detail = task.closeReason.map { String(decoding: $0, as: UTF8.self) } ?? ""
                    self.lost(task, code: code, token: token, status: status, detail: detail)
                }
            }
        }
    }

    /// Lets go of the socket, so that nothing it still says is heard.
    private func drop() {
        alive?.cancel()
        socket?.cancel(with: .goingAway, reason: nil)
        socket = nil
        isOpen = false
    }

    private func lost(
        _ task: URLSessionWebSocketTask, code: Int, token: String?, status: Int = 101, detail: String = ""
    ) {
        guard task === socket else { return }
        drop()
        if let reason = finalCodes[code] ?? finalStatuses[status] {
            if reason == .signedOut && token == trivia.token { trivia.setToken(nil) }
            return end(reason, detail)
        }
        if !wanted { return end(.done) }
        failures += 1
        if code == restartCode && failures == 1 { return reconnect(after: 0) }
        let grown = min(maxPause, 0.25 * pow(2, Double(min(failures, 10))))
        let isBusy = busyCodes.contains(code) || status == 429 || status >= 500
        let pause = isBusy ? max(grown, busyPause) : grown
        reconnect(after: pause * Double.random(in: 0.5...1))  // so that not all phones come at once
    }

    private func reconnect(after seconds: Double) {
        timer?.cancel()
        if seconds == 0 { return connect() }
        setLink(.waiting(seconds: seconds))
        timer = later(seconds) { play in play.connect() }
    }

    private func end(_ reason: CloseReason, _ detail: String = "") {
        timer?.cancel()
        drop()
        wanted = false
        setLink(.closed(reason, detail: detail))
    }

    /// Asks whether the connection is alive when nothing was heard for a while.
    private func watch() {
        alive?.cancel()
        alive = later(silence) { play in play.probe() }
    }

    private func probe() {
        guard let task = socket else { return }
        _ = sendNow(PingFields())
        alive?.cancel()
        alive = later(replyTime) { play in play.lost(task, code: 0, token: nil) }
    }

    private func sendNow(_ message: some ClientMessage) -> Bool {
        guard isOpen, let socket, let data = try? JSONEncoder().encode(message) else { return false }
        socket.send(.string(String(decoding: data, as: UTF8.self))) { _ in }
        return true
    }

    private func setLink(_ link: Link) {
        self.link = link
        onLink?(link)
        onChange?(game)
    }

    // MARK: messages

    private func receive(_ data: Data) {
        watch()
        failures = 0
        joined = true
        guard let head = try? JSONDecoder().decode(MessageHead.self, from: data),
            let message = try? ServerMessage.decode(data)
        else { return }
        if let number = head.seq, let id = head.game, isStale(head.type, id, number) { return }
        if case .error(let error) = message, repairs(error, id: head.id) { return }
        apply(message)
        onMessage?(message)
        onChange?(game)
    }

    /// Tells whether a message brings nothing new. After a gap it asks for the whole state.
    private func isStale(_ type: String, _ id: String, _ number: Int) -> Bool {
        let known = id == game.id ? seq : 0
        if type == "update" {
            checking = false
            if number < known { return true }
        } else {
            if number <= known { return true }
            if number > known + 1 { check() }
        }
        seq = number
        if id != game.id { game = Game(id: id) }
        return false
    }

    private func check() {
        if !checking { checking = sendNow(CheckFields()) }
    }

    private func sendAnswer() {
        guard let unsure else { return }
        sent += 1
        var fields = AnswerFields(round: unsure.round, choice: unsure.choice)
        fields.game = unsure.game
        fields.id = .number(Double(sent))
        _ = sendNow(fields)
    }

    private func apply(_ message: ServerMessage) {
        switch message {
        case .queued(let queued):
            room = nil
            game = Game(phase: .queued)
            setDeadline(queued.timeoutMs)
        case .cancelled(let cancelled):
            game.phase = .cancelled
            game.reason = cancelled.reason
            room = nil
            wanted = false
        case .room(let message):
            room = message
            wanted = true
        case .start(let start):
            game.phase = .start
            game.rounds = start.rounds
            game.players = start.players
            game.scores = Dictionary(uniqueKeysWithValues: start.players.map { ($0.username, 0) })
            setDeadline(start.startsMs)
        case .question(let question):
            unsure = nil
            game.phase = .question
            game.round = question.round
            game.question = QuestionView(
                round: question.round, text: question.text, choices: question.choices,
                category: question.category, difficulty: question.difficulty)
            game.choice = nil
            game.correct = nil
            game.answered = []
            game.answers = [:]
            setDeadline(question.answerMs)
        case .answered(let answered):
            if answered.round == game.round { game.answered.append(answered.player) }
        case .reveal(let reveal):
            unsure = nil
            game.phase = .reveal
            game.correct = reveal.correct
            game.answers = reveal.answers.mapValues { Answer(choice: $0.choice, points: $0.points, ms: Int($0.ms)) }
            game.scores = reveal.scores
            setDeadline(reveal.revealMs)
        case .update(let update):
            applyUpdate(update)
        case .userExit(let exit):
            game.away.insert(exit.player)
        case .userReturn(let back):
            game.away.remove(back.player)
        case .end(let end):
            unsure = nil
            wanted = room != nil
            game.phase = .end
            game.reason = end.reason
            game.end = end
        default:
            break
        }
    }

    private func applyUpdate(_ update: UpdateMessage) {
        var now = Game(phase: Phase(rawValue: update.phase) ?? .none, id: update.game)
        now.players = update.players
        now.rounds = update.rounds
        now.round = update.round
        now.question = update.question.map { shown in
            QuestionView(
                round: shown.round ?? 0, text: shown.text ?? "", choices: shown.choices ?? [],
                category: shown.category ?? "", difficulty: shown.difficulty ?? "")
        }
        now.choice = update.choice
        now.correct = update.correct
        now.answered = update.answered ?? []
        now.answers = answers(of: update.answers)
        now.scores = update.scores
        now.away = Set(update.players.map { $0.username }).subtracting(update.connected)
        game = now
        wanted = true
        setDeadline(update.leftMs)
        guard let lost = unsure, now.phase == .question, now.choice == nil,
            lost.game == now.id, lost.round == now.round
        else {
            unsure = nil
            return
        }
        game.choice = lost.choice  // it was lost on the way: the server knows of none
        sendAnswer()
    }

    private func answers(of value: JSONValue?) -> [String: Answer] {
        guard let value, let data = try? JSONEncoder().encode(value) else { return [:] }
        return (try? JSONDecoder().decode([String: Answer].self, from: data)) ?? [:]
    }

    /// Handles an error about the answer. Returns whether the app need not know.
    private func repairs(_ error: ErrorMessage, id: JSONValue?) -> Bool {
        guard let answer = unsure, id == .number(Double(sent)) else { return false }
        if error.code == "already_answered" { return true }  // it had arrived before
        if error.code == "unavailable" {
            _ = later(retryAnswer) { play in
                if let now = play.unsure, now == answer { play.sendAnswer() }
            }
            return true
        }
        unsure = nil
        game.choice = nil
        return false
    }

    private func setDeadline(_ ms: Int) {
        deadline = DispatchTime.now() + .milliseconds(ms)
    }
}

/// Tells when a handshake is done.
private final class Opener: NSObject, URLSessionWebSocketDelegate, @unchecked Sendable {
    var opened: (@Sendable (URLSessionWebSocketTask) -> Void)?

    func urlSession(
        _ session: URLSession, webSocketTask: URLSessionWebSocketTask,
        didOpenWithProtocol protocol: String?
    ) {
        opened?(webSocketTask)
    }
}
