// A client for Trivia, made from schema.yaml by `python trivia.py client kotlin`.
// Do not edit it: change schema.yaml and make it again.
//
// It needs nothing but Java 8 or Android 7 (API 24), whose sockets it uses.
//
//   val trivia = Trivia("https://quiz.example.org", token) { keep(it) }
//   if (trivia.token == null) trivia.login(Login(login = name, password = password))      // blocks: not on the main thread
//   val play = trivia.play("random", callbacks = mainExecutor)
//   play.onChange { game -> show(game) }
//   play.onMessage { message -> if (message is EndMessage) celebrate(message.ranking) }
//   play.answer(0)

package trivia

import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.EOFException
import java.io.IOException
import java.io.InputStream
import java.net.InetSocketAddress
import java.net.Socket
import java.net.URI
import java.net.URLEncoder
import java.security.SecureRandom
import java.util.concurrent.Executor
import java.util.concurrent.ScheduledExecutorService
import java.util.concurrent.ScheduledFuture
import java.util.concurrent.ScheduledThreadPoolExecutor
import java.util.concurrent.TimeUnit
import javax.net.ssl.SSLSocket
import javax.net.ssl.SSLSocketFactory

/** The version of the protocol. The server refuses a client of another version. */
const val PROTOCOL = "trivia.v1"

// ---- types ---------------------------------------------------------------------------------------

data class NewUser(
    /** The name that other players see. */
    val username: String,
    /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
    val email: String,
    /** The server stores only its argon2id hash. */
    val password: String,
    /** The http or https address of a picture. Default: "". */
    val avatar: String? = null,
    /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
    val zone: String? = null,
) {
    internal fun fields() = fieldsOf("username" to username, "email" to email, "password" to password, "avatar" to avatar, "zone" to zone)

    companion object {
        internal fun from(json: Json) = NewUser(
            username = json["username"].text(),
            email = json["email"].text(),
            password = json["password"].text(),
            avatar = json["avatar"].orNull { it.text() },
            zone = json["zone"].orNull { it.text() },
        )
    }
}

data class Guest(
    /** A random text that the device makes once and keeps as a password. */
    val secret: String,
) {
    internal fun fields() = fieldsOf("secret" to secret)

    companion object {
        internal fun from(json: Json) = Guest(
            secret = json["secret"].text(),
        )
    }
}

data class Recovery(
    val login: String,
) {
    internal fun fields() = fieldsOf("login" to login)

    companion object {
        internal fun from(json: Json) = Recovery(
            login = json["login"].text(),
        )
    }
}

data class Reset(
    val login: String,
    /** The six digits of the mail. */
    val code: String,
    /** The server stores only its argon2id hash. */
    val password: String,
) {
    internal fun fields() = fieldsOf("login" to login, "code" to code, "password" to password)

    companion object {
        internal fun from(json: Json) = Reset(
            login = json["login"].text(),
            code = json["code"].text(),
            password = json["password"].text(),
        )
    }
}

data class Confirmation(
    /** The six digits of the mail. */
    val code: String,
) {
    internal fun fields() = fieldsOf("code" to code)

    companion object {
        internal fun from(json: Json) = Confirmation(
            code = json["code"].text(),
        )
    }
}

data class ConfirmationMail(
    /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
    val email: String? = null,
) {
    internal fun fields() = fieldsOf("email" to email)

    companion object {
        internal fun from(json: Json) = ConfirmationMail(
            email = json["email"].orNull { it.text() },
        )
    }
}

data class Upgrade(
    /** The name that other players see. */
    val username: String? = null,
    /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
    val email: String,
    /** The server stores only its argon2id hash. */
    val password: String,
    /** The http or https address of a picture. Default: "". */
    val avatar: String? = null,
    /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
    val zone: String? = null,
) {
    internal fun fields() = fieldsOf("username" to username, "email" to email, "password" to password, "avatar" to avatar, "zone" to zone)

    companion object {
        internal fun from(json: Json) = Upgrade(
            username = json["username"].orNull { it.text() },
            email = json["email"].text(),
            password = json["password"].text(),
            avatar = json["avatar"].orNull { it.text() },
            zone = json["zone"].orNull { it.text() },
        )
    }
}

data class UserChanges(
    /** The name that other players see. */
    val username: String? = null,
    /** An alternative to the username at sign-in, and where a forgotten password is recovered. */
    val email: String? = null,
    /** The http or https address of a picture. Default: "". */
    val avatar: String? = null,
    /** The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC". */
    val zone: String? = null,
    /** The present password. A new username or email takes it. */
    val password: String? = null,
) {
    internal fun fields() = fieldsOf("username" to username, "email" to email, "avatar" to avatar, "zone" to zone, "password" to password)

    companion object {
        internal fun from(json: Json) = UserChanges(
            username = json["username"].orNull { it.text() },
            email = json["email"].orNull { it.text() },
            avatar = json["avatar"].orNull { it.text() },
            zone = json["zone"].orNull { it.text() },
            password = json["password"].orNull { it.text() },
        )
    }
}

data class Login(
    /** A username or email. */
    val login: String? = null,
    /** Can be given instead of login. */
    val username: String? = null,
    /** Can be given instead of login. */
    val email: String? = null,
    val password: String,
) {
    internal fun fields() = fieldsOf("login" to login, "username" to username, "email" to email, "password" to password)

    companion object {
        internal fun from(json: Json) = Login(
            login = json["login"].orNull { it.text() },
            username = json["username"].orNull { it.text() },
            email = json["email"].orNull { it.text() },
            password = json["password"].text(),
        )
    }
}

data class PasswordChange(
    /** The present password. */
    val password: String,
    /** The server stores only its argon2id hash. */
    val newPassword: String,
) {
    internal fun fields() = fieldsOf("password" to password, "new_password" to newPassword)

    companion object {
        internal fun from(json: Json) = PasswordChange(
            password = json["password"].text(),
            newPassword = json["new_password"].text(),
        )
    }
}

data class PasswordConfirmation(
    /** Needed, unless the account has none: that of a guest, or of an identity. */
    val password: String? = null,
) {
    internal fun fields() = fieldsOf("password" to password)

    companion object {
        internal fun from(json: Json) = PasswordConfirmation(
            password = json["password"].orNull { it.text() },
        )
    }
}

data class Report(
    /** A username. */
    val player: String? = null,
    /** Instead of a player: the text of a question as it was shown, or its id. */
    val question: String? = null,
    /**
     * Of a player: name, picture, message, cheating; of a question: wrong, ambiguous, outdated,
     * offensive.
     */
    val reason: String,
    /** A game of the caller, running or not; the operator sees its rounds. */
    val game: String? = null,
    /** A note to the operator. */
    val text: String? = null,
) {
    internal fun fields() = fieldsOf("player" to player, "question" to question, "reason" to reason, "game" to game, "text" to text)

    companion object {
        internal fun from(json: Json) = Report(
            player = json["player"].orNull { it.text() },
            question = json["question"].orNull { it.text() },
            reason = json["reason"].text(),
            game = json["game"].orNull { it.text() },
            text = json["text"].orNull { it.text() },
        )
    }
}

data class ChallengeQueue(
    /** A queue with `match: challenge`. */
    val queue: String,
) {
    internal fun fields() = fieldsOf("queue" to queue)

    companion object {
        internal fun from(json: Json) = ChallengeQueue(
            queue = json["queue"].text(),
        )
    }
}

data class User(
    /** The name that other players see. */
    val username: String,
    val email: String?,
    /** The http or https address of a picture. */
    val avatar: String,
    /** Games in which the player alone was first. */
    val wins: Long,
    /** Games that ended and count. */
    val games: Long,
    /** Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number. */
    val rating: Long,
    /** Days in a row with a daily game. */
    val streak: Long,
    /** Points in daily games. */
    val dailyPoints: Long,
    /** The time zone of the player's phone. Their `streak` counts days by it. */
    val zone: String,
    /** Seconds since 1970. */
    val createdAt: Long,
    val emailConfirmed: Boolean,
    /** Present while the user is a guest. */
    val guest: Any? = null,
    /** Present while the rating is uncertain. */
    val provisional: Any? = null,
) {
    internal fun fields() = fieldsOf("username" to username, "email" to email, "avatar" to avatar, "wins" to wins, "games" to games, "rating" to rating, "streak" to streak, "daily_points" to dailyPoints, "zone" to zone, "created_at" to createdAt, "email_confirmed" to emailConfirmed, "guest" to guest, "provisional" to provisional)

    companion object {
        internal fun from(json: Json) = User(
            username = json["username"].text(),
            email = json["email"].orNull { it.text() },
            avatar = json["avatar"].text(),
            wins = json["wins"].long(),
            games = json["games"].long(),
            rating = json["rating"].long(),
            streak = json["streak"].long(),
            dailyPoints = json["daily_points"].long(),
            zone = json["zone"].text(),
            createdAt = json["created_at"].long(),
            emailConfirmed = json["email_confirmed"].bool(),
            guest = json["guest"].value,
            provisional = json["provisional"].value,
        )
    }
}

data class Player(
    /** The name that other players see. */
    val username: String,
    /** The http or https address of a picture. */
    val avatar: String,
    /** Games in which the player alone was first. */
    val wins: Long,
    /** Games that ended and count. */
    val games: Long,
    /** Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number. */
    val rating: Long,
    /** Days in a row with a daily game. */
    val streak: Long,
    /** Points in daily games. */
    val dailyPoints: Long,
    /** Present while the user is a guest. */
    val guest: Any? = null,
    /** Present while the rating is uncertain. */
    val provisional: Any? = null,
    /** Present if the player is a bot. */
    val bot: Any? = null,
) {
    internal fun fields() = fieldsOf("username" to username, "avatar" to avatar, "wins" to wins, "games" to games, "rating" to rating, "streak" to streak, "daily_points" to dailyPoints, "guest" to guest, "provisional" to provisional, "bot" to bot)

    companion object {
        internal fun from(json: Json) = Player(
            username = json["username"].text(),
            avatar = json["avatar"].text(),
            wins = json["wins"].long(),
            games = json["games"].long(),
            rating = json["rating"].long(),
            streak = json["streak"].long(),
            dailyPoints = json["daily_points"].long(),
            guest = json["guest"].value,
            provisional = json["provisional"].value,
            bot = json["bot"].value,
        )
    }
}

data class Session(
    val token: String,
    /** Seconds since 1970; each day of use moves it forward. */
    val expiresAt: Long,
    val user: User,
) {
    internal fun fields() = fieldsOf("token" to token, "expires_at" to expiresAt, "user" to user.fields())

    companion object {
        internal fun from(json: Json) = Session(
            token = json["token"].text(),
            expiresAt = json["expires_at"].long(),
            user = User.from(json["user"]),
        )
    }
}

data class Upgraded(
    val user: User,
) {
    internal fun fields() = fieldsOf("user" to user.fields())

    companion object {
        internal fun from(json: Json) = Upgraded(
            user = User.from(json["user"]),
        )
    }
}

data class Problem(
    val type: String,
    val title: String,
    val status: Int,
    val detail: String,
    /** Stable; for programs. A later version may add codes. */
    val code: String,
    /** What is wrong, by field. */
    val errors: Map<String, List<String>>? = null,
    /** A token for POST /auth/merge. */
    val merge: String? = null,
    val guest: Player? = null,
    val account: Player? = null,
    /** End of a ban, in ms since 1970; 0: it has none. */
    val untilMs: Long? = null,
    /** Of a ban. */
    val reason: String? = null,
    /** Where a new version of the app is. */
    val store: String? = null,
) {
    internal fun fields() = fieldsOf("type" to type, "title" to title, "status" to status, "detail" to detail, "code" to code, "errors" to errors, "merge" to merge, "guest" to guest?.fields(), "account" to account?.fields(), "until_ms" to untilMs, "reason" to reason, "store" to store)

    companion object {
        internal fun from(json: Json) = Problem(
            type = json["type"].text(),
            title = json["title"].text(),
            status = json["status"].int(),
            detail = json["detail"].text(),
            code = json["code"].text(),
            errors = json["errors"].orNull { it.map { it.list { it.text() } } },
            merge = json["merge"].orNull { it.text() },
            guest = json["guest"].orNull { Player.from(it) },
            account = json["account"].orNull { Player.from(it) },
            untilMs = json["until_ms"].orNull { it.long() },
            reason = json["reason"].orNull { it.text() },
            store = json["store"].orNull { it.text() },
        )
    }
}

data class GameSummary(
    val id: String,
    val queue: String,
    /** Milliseconds since 1970. */
    val endedMs: Long,
    val reason: String,
    val ranking: List<Ranking>,
) {
    internal fun fields() = fieldsOf("id" to id, "queue" to queue, "ended_ms" to endedMs, "reason" to reason, "ranking" to ranking.map { it.fields() })

    companion object {
        internal fun from(json: Json) = GameSummary(
            id = json["id"].text(),
            queue = json["queue"].text(),
            endedMs = json["ended_ms"].long(),
            reason = json["reason"].text(),
            ranking = json["ranking"].list { Ranking.from(it) },
        )
    }

    data class Ranking(
        val player: String,
        val score: Int,
        val rank: Int,
        val rating: Int? = null,
        val ratingChange: Int? = null,
        /** Present while the rating is uncertain. */
        val provisional: Any? = null,
        /** Present if it is a bot. */
        val bot: Any? = null,
        val counts: Boolean? = null,
    ) {
        internal fun fields() = fieldsOf("player" to player, "score" to score, "rank" to rank, "rating" to rating, "rating_change" to ratingChange, "provisional" to provisional, "bot" to bot, "counts" to counts)

        companion object {
            internal fun from(json: Json) = Ranking(
                player = json["player"].text(),
                score = json["score"].int(),
                rank = json["rank"].int(),
                rating = json["rating"].orNull { it.int() },
                ratingChange = json["rating_change"].orNull { it.int() },
                provisional = json["provisional"].value,
                bot = json["bot"].value,
                counts = json["counts"].orNull { it.bool() },
            )
        }
    }
}

data class GameRecord(
    val id: String,
    val queue: String,
    /** Milliseconds since 1970. */
    val endedMs: Long,
    val reason: String,
    val ranking: List<Ranking>,
    val rounds: List<Rounds>,
) {
    internal fun fields() = fieldsOf("id" to id, "queue" to queue, "ended_ms" to endedMs, "reason" to reason, "ranking" to ranking.map { it.fields() }, "rounds" to rounds.map { it.fields() })

    companion object {
        internal fun from(json: Json) = GameRecord(
            id = json["id"].text(),
            queue = json["queue"].text(),
            endedMs = json["ended_ms"].long(),
            reason = json["reason"].text(),
            ranking = json["ranking"].list { Ranking.from(it) },
            rounds = json["rounds"].list { Rounds.from(it) },
        )
    }

    data class Ranking(
        val player: String,
        val score: Int,
        val rank: Int,
        val rating: Int? = null,
        val ratingChange: Int? = null,
        /** Present while the rating is uncertain. */
        val provisional: Any? = null,
        /** Present if it is a bot. */
        val bot: Any? = null,
        val counts: Boolean? = null,
    ) {
        internal fun fields() = fieldsOf("player" to player, "score" to score, "rank" to rank, "rating" to rating, "rating_change" to ratingChange, "provisional" to provisional, "bot" to bot, "counts" to counts)

        companion object {
            internal fun from(json: Json) = Ranking(
                player = json["player"].text(),
                score = json["score"].int(),
                rank = json["rank"].int(),
                rating = json["rating"].orNull { it.int() },
                ratingChange = json["rating_change"].orNull { it.int() },
                provisional = json["provisional"].value,
                bot = json["bot"].value,
                counts = json["counts"].orNull { it.bool() },
            )
        }
    }

    data class Rounds(
        val text: String,
        val choices: List<String>,
        val category: String,
        val difficulty: String,
        val correct: Int,
        val answers: Map<String, Answers>,
    ) {
        internal fun fields() = fieldsOf("text" to text, "choices" to choices, "category" to category, "difficulty" to difficulty, "correct" to correct, "answers" to answers.mapValues { it.value.fields() })

        companion object {
            internal fun from(json: Json) = Rounds(
                text = json["text"].text(),
                choices = json["choices"].list { it.text() },
                category = json["category"].text(),
                difficulty = json["difficulty"].text(),
                correct = json["correct"].int(),
                answers = json["answers"].map { Answers.from(it) },
            )
        }

        data class Answers(
            val choice: Int,
            val ms: Long,
            val points: Int,
        ) {
            internal fun fields() = fieldsOf("choice" to choice, "ms" to ms, "points" to points)

            companion object {
                internal fun from(json: Json) = Answers(
                    choice = json["choice"].int(),
                    ms = json["ms"].long(),
                    points = json["points"].int(),
                )
            }
        }
    }
}

data class GameList(
    val games: List<GameSummary>,
    val cursor: String?,
) {
    internal fun fields() = fieldsOf("games" to games.map { it.fields() }, "cursor" to cursor)

    companion object {
        internal fun from(json: Json) = GameList(
            games = json["games"].list { GameSummary.from(it) },
            cursor = json["cursor"].orNull { it.text() },
        )
    }
}

data class Leaderboard(
    val leaderboard: String,
    val period: String?,
    val total: Int,
    val entries: List<Entries>,
) {
    internal fun fields() = fieldsOf("leaderboard" to leaderboard, "period" to period, "total" to total, "entries" to entries.map { it.fields() })

    companion object {
        internal fun from(json: Json) = Leaderboard(
            leaderboard = json["leaderboard"].text(),
            period = json["period"].orNull { it.text() },
            total = json["total"].int(),
            entries = json["entries"].list { Entries.from(it) },
        )
    }

    data class Entries(
        val rank: Int,
        val username: String,
        val value: Double,
        /** Present while the rating is uncertain. */
        val provisional: Any? = null,
    ) {
        internal fun fields() = fieldsOf("rank" to rank, "username" to username, "value" to value, "provisional" to provisional)

        companion object {
            internal fun from(json: Json) = Entries(
                rank = json["rank"].int(),
                username = json["username"].text(),
                value = json["value"].double(),
                provisional = json["provisional"].value,
            )
        }
    }
}

data class QueueList(
    val queues: List<Queues>,
) {
    internal fun fields() = fieldsOf("queues" to queues.map { it.fields() })

    companion object {
        internal fun from(json: Json) = QueueList(
            queues = json["queues"].list { Queues.from(it) },
        )
    }

    data class Queues(
        val description: String? = null,
        val players: Players,
        val match: String? = null,
        val days: Int? = null,
        val lateJoin: Boolean? = null,
        val rematchSeconds: Double? = null,
        val draw: String? = null,
        val attempts: Int? = null,
        val bots: Bots? = null,
        val window: Double? = null,
        val widen: Double? = null,
        val fillSeconds: Double? = null,
        val waitSeconds: Double? = null,
        val rounds: Int? = null,
        val startSeconds: Double? = null,
        val answerSeconds: Double? = null,
        val revealSeconds: Double? = null,
        val totalSeconds: Double? = null,
        val lives: Int? = null,
        val seatSeconds: Double? = null,
        val rated: Boolean? = null,
        val scoring: Scoring? = null,
        val onExit: String? = null,
        val categories: List<String>? = null,
        val difficulties: List<String>? = null,
        val name: String,
        val waiting: Int,
        val playing: Int,
    ) {
        internal fun fields() = fieldsOf("description" to description, "players" to players.fields(), "match" to match, "days" to days, "late_join" to lateJoin, "rematch_seconds" to rematchSeconds, "draw" to draw, "attempts" to attempts, "bots" to bots?.fields(), "window" to window, "widen" to widen, "fill_seconds" to fillSeconds, "wait_seconds" to waitSeconds, "rounds" to rounds, "start_seconds" to startSeconds, "answer_seconds" to answerSeconds, "reveal_seconds" to revealSeconds, "total_seconds" to totalSeconds, "lives" to lives, "seat_seconds" to seatSeconds, "rated" to rated, "scoring" to scoring?.fields(), "on_exit" to onExit, "categories" to categories, "difficulties" to difficulties, "name" to name, "waiting" to waiting, "playing" to playing)

        companion object {
            internal fun from(json: Json) = Queues(
                description = json["description"].orNull { it.text() },
                players = Players.from(json["players"]),
                match = json["match"].orNull { it.text() },
                days = json["days"].orNull { it.int() },
                lateJoin = json["late_join"].orNull { it.bool() },
                rematchSeconds = json["rematch_seconds"].orNull { it.double() },
                draw = json["draw"].orNull { it.text() },
                attempts = json["attempts"].orNull { it.int() },
                bots = json["bots"].orNull { Bots.from(it) },
                window = json["window"].orNull { it.double() },
                widen = json["widen"].orNull { it.double() },
                fillSeconds = json["fill_seconds"].orNull { it.double() },
                waitSeconds = json["wait_seconds"].orNull { it.double() },
                rounds = json["rounds"].orNull { it.int() },
                startSeconds = json["start_seconds"].orNull { it.double() },
                answerSeconds = json["answer_seconds"].orNull { it.double() },
                revealSeconds = json["reveal_seconds"].orNull { it.double() },
                totalSeconds = json["total_seconds"].orNull { it.double() },
                lives = json["lives"].orNull { it.int() },
                seatSeconds = json["seat_seconds"].orNull { it.double() },
                rated = json["rated"].orNull { it.bool() },
                scoring = json["scoring"].orNull { Scoring.from(it) },
                onExit = json["on_exit"].orNull { it.text() },
                categories = json["categories"].orNull { it.list { it.text() } },
                difficulties = json["difficulties"].orNull { it.list { it.text() } },
                name = json["name"].text(),
                waiting = json["waiting"].int(),
                playing = json["playing"].int(),
            )
        }

        data class Players(
            val min: Int,
            val max: Int,
        ) {
            internal fun fields() = fieldsOf("min" to min, "max" to max)

            companion object {
                internal fun from(json: Json) = Players(
                    min = json["min"].int(),
                    max = json["max"].int(),
                )
            }
        }

        data class Bots(
            val afterSeconds: Double,
            val skill: Any?,
        ) {
            internal fun fields() = fieldsOf("after_seconds" to afterSeconds, "skill" to skill)

            companion object {
                internal fun from(json: Json) = Bots(
                    afterSeconds = json["after_seconds"].double(),
                    skill = json["skill"].value,
                )
            }
        }

        data class Scoring(
            val correct: Int,
            val speed: Int,
        ) {
            internal fun fields() = fieldsOf("correct" to correct, "speed" to speed)

            companion object {
                internal fun from(json: Json) = Scoring(
                    correct = json["correct"].int(),
                    speed = json["speed"].int(),
                )
            }
        }
    }
}

data class Rules(
    val players: Players? = null,
    val match: String? = null,
    val days: Int? = null,
    val lateJoin: Boolean? = null,
    val rematchSeconds: Double? = null,
    val draw: String? = null,
    val attempts: Int? = null,
    val bots: Bots? = null,
    val window: Double? = null,
    val widen: Double? = null,
    val fillSeconds: Double? = null,
    val waitSeconds: Double? = null,
    val rounds: Int? = null,
    val startSeconds: Double? = null,
    val answerSeconds: Double? = null,
    val revealSeconds: Double? = null,
    val totalSeconds: Double? = null,
    val lives: Int? = null,
    val seatSeconds: Double? = null,
    val rated: Boolean? = null,
    val scoring: Scoring? = null,
    val onExit: String? = null,
    val categories: List<String>? = null,
    val difficulties: List<String>? = null,
) {
    internal fun fields() = fieldsOf("players" to players?.fields(), "match" to match, "days" to days, "late_join" to lateJoin, "rematch_seconds" to rematchSeconds, "draw" to draw, "attempts" to attempts, "bots" to bots?.fields(), "window" to window, "widen" to widen, "fill_seconds" to fillSeconds, "wait_seconds" to waitSeconds, "rounds" to rounds, "start_seconds" to startSeconds, "answer_seconds" to answerSeconds, "reveal_seconds" to revealSeconds, "total_seconds" to totalSeconds, "lives" to lives, "seat_seconds" to seatSeconds, "rated" to rated, "scoring" to scoring?.fields(), "on_exit" to onExit, "categories" to categories, "difficulties" to difficulties)

    companion object {
        internal fun from(json: Json) = Rules(
            players = json["players"].orNull { Players.from(it) },
            match = json["match"].orNull { it.text() },
            days = json["days"].orNull { it.int() },
            lateJoin = json["late_join"].orNull { it.bool() },
            rematchSeconds = json["rematch_seconds"].orNull { it.double() },
            draw = json["draw"].orNull { it.text() },
            attempts = json["attempts"].orNull { it.int() },
            bots = json["bots"].orNull { Bots.from(it) },
            window = json["window"].orNull { it.double() },
            widen = json["widen"].orNull { it.double() },
            fillSeconds = json["fill_seconds"].orNull { it.double() },
            waitSeconds = json["wait_seconds"].orNull { it.double() },
            rounds = json["rounds"].orNull { it.int() },
            startSeconds = json["start_seconds"].orNull { it.double() },
            answerSeconds = json["answer_seconds"].orNull { it.double() },
            revealSeconds = json["reveal_seconds"].orNull { it.double() },
            totalSeconds = json["total_seconds"].orNull { it.double() },
            lives = json["lives"].orNull { it.int() },
            seatSeconds = json["seat_seconds"].orNull { it.double() },
            rated = json["rated"].orNull { it.bool() },
            scoring = json["scoring"].orNull { Scoring.from(it) },
            onExit = json["on_exit"].orNull { it.text() },
            categories = json["categories"].orNull { it.list { it.text() } },
            difficulties = json["difficulties"].orNull { it.list { it.text() } },
        )
    }

    data class Players(
        val min: Int,
        val max: Int,
    ) {
        internal fun fields() = fieldsOf("min" to min, "max" to max)

        companion object {
            internal fun from(json: Json) = Players(
                min = json["min"].int(),
                max = json["max"].int(),
            )
        }
    }

    data class Bots(
        val afterSeconds: Double,
        val skill: Any?,
    ) {
        internal fun fields() = fieldsOf("after_seconds" to afterSeconds, "skill" to skill)

        companion object {
            internal fun from(json: Json) = Bots(
                afterSeconds = json["after_seconds"].double(),
                skill = json["skill"].value,
            )
        }
    }

    data class Scoring(
        val correct: Int,
        val speed: Int,
    ) {
        internal fun fields() = fieldsOf("correct" to correct, "speed" to speed)

        companion object {
            internal fun from(json: Json) = Scoring(
                correct = json["correct"].int(),
                speed = json["speed"].int(),
            )
        }
    }
}

data class Room(
    val queue: String,
    val settings: Rules,
    val code: String,
    val host: String,
    val players: List<Player>,
    val connected: List<String>,
    val locked: Boolean,
    val state: String,
) {
    internal fun fields() = fieldsOf("queue" to queue, "settings" to settings.fields(), "code" to code, "host" to host, "players" to players.map { it.fields() }, "connected" to connected, "locked" to locked, "state" to state)

    companion object {
        internal fun from(json: Json) = Room(
            queue = json["queue"].text(),
            settings = Rules.from(json["settings"]),
            code = json["code"].text(),
            host = json["host"].text(),
            players = json["players"].list { Player.from(it) },
            connected = json["connected"].list { it.text() },
            locked = json["locked"].bool(),
            state = json["state"].text(),
        )
    }
}

data class ReportReceipt(
    val id: String,
) {
    internal fun fields() = fieldsOf("id" to id)

    companion object {
        internal fun from(json: Json) = ReportReceipt(
            id = json["id"].text(),
        )
    }
}

data class BlockList(
    val blocks: List<Blocks>,
) {
    internal fun fields() = fieldsOf("blocks" to blocks.map { it.fields() })

    companion object {
        internal fun from(json: Json) = BlockList(
            blocks = json["blocks"].list { Blocks.from(it) },
        )
    }

    data class Blocks(
        val username: String,
        /** Seconds since 1970. */
        val blockedAt: Long,
    ) {
        internal fun fields() = fieldsOf("username" to username, "blocked_at" to blockedAt)

        companion object {
            internal fun from(json: Json) = Blocks(
                username = json["username"].text(),
                blockedAt = json["blocked_at"].long(),
            )
        }
    }
}

data class NewChallenge(
    val code: String,
    /** Seconds since 1970. */
    val expiresAt: Long,
) {
    internal fun fields() = fieldsOf("code" to code, "expires_at" to expiresAt)

    companion object {
        internal fun from(json: Json) = NewChallenge(
            code = json["code"].text(),
            expiresAt = json["expires_at"].long(),
        )
    }
}

data class Challenge(
    val code: String,
    val queue: String,
    val owner: String,
    /** Seconds since 1970. */
    val expiresAt: Long,
    val state: String,
    val players: List<Players>,
    /** Present if the caller has played it. */
    val rounds: List<Rounds>? = null,
) {
    internal fun fields() = fieldsOf("code" to code, "queue" to queue, "owner" to owner, "expires_at" to expiresAt, "state" to state, "players" to players.map { it.fields() }, "rounds" to rounds?.map { it.fields() })

    companion object {
        internal fun from(json: Json) = Challenge(
            code = json["code"].text(),
            queue = json["queue"].text(),
            owner = json["owner"].text(),
            expiresAt = json["expires_at"].long(),
            state = json["state"].text(),
            players = json["players"].list { Players.from(it) },
            rounds = json["rounds"].orNull { it.list { Rounds.from(it) } },
        )
    }

    data class Players(
        val player: String,
        val state: String,
        val score: Int? = null,
        /** Among those who have finished; equals share it. */
        val rank: Int? = null,
    ) {
        internal fun fields() = fieldsOf("player" to player, "state" to state, "score" to score, "rank" to rank)

        companion object {
            internal fun from(json: Json) = Players(
                player = json["player"].text(),
                state = json["state"].text(),
                score = json["score"].orNull { it.int() },
                rank = json["rank"].orNull { it.int() },
            )
        }
    }

    /** Present if the caller has played it. */
    data class Rounds(
        val text: String,
        val choices: List<String>,
        val category: String,
        val difficulty: String,
        val correct: Int,
        val answers: Map<String, Answers>,
    ) {
        internal fun fields() = fieldsOf("text" to text, "choices" to choices, "category" to category, "difficulty" to difficulty, "correct" to correct, "answers" to answers.mapValues { it.value.fields() })

        companion object {
            internal fun from(json: Json) = Rounds(
                text = json["text"].text(),
                choices = json["choices"].list { it.text() },
                category = json["category"].text(),
                difficulty = json["difficulty"].text(),
                correct = json["correct"].int(),
                answers = json["answers"].map { Answers.from(it) },
            )
        }

        data class Answers(
            val choice: Int,
            val ms: Long,
            val points: Int,
        ) {
            internal fun fields() = fieldsOf("choice" to choice, "ms" to ms, "points" to points)

            companion object {
                internal fun from(json: Json) = Answers(
                    choice = json["choice"].int(),
                    ms = json["ms"].long(),
                    points = json["points"].int(),
                )
            }
        }
    }
}

data class ChallengeList(
    val challenges: List<Challenge>,
) {
    internal fun fields() = fieldsOf("challenges" to challenges.map { it.fields() })

    companion object {
        internal fun from(json: Json) = ChallengeList(
            challenges = json["challenges"].list { Challenge.from(it) },
        )
    }
}

data class Export(
    val user: User,
    val sessions: List<Sessions>,
    val ban: Ban?,
    val blocks: List<Blocks>,
    val reports: List<Reports>,
    val games: List<GameRecord>,
    val questionsSeen: List<String>,
    val challenges: List<Challenge>,
) {
    internal fun fields() = fieldsOf("user" to user.fields(), "sessions" to sessions.map { it.fields() }, "ban" to ban?.fields(), "blocks" to blocks.map { it.fields() }, "reports" to reports.map { it.fields() }, "games" to games.map { it.fields() }, "questions_seen" to questionsSeen, "challenges" to challenges.map { it.fields() })

    companion object {
        internal fun from(json: Json) = Export(
            user = User.from(json["user"]),
            sessions = json["sessions"].list { Sessions.from(it) },
            ban = json["ban"].orNull { Ban.from(it) },
            blocks = json["blocks"].list { Blocks.from(it) },
            reports = json["reports"].list { Reports.from(it) },
            games = json["games"].list { GameRecord.from(it) },
            questionsSeen = json["questions_seen"].list { it.text() },
            challenges = json["challenges"].list { Challenge.from(it) },
        )
    }

    data class Sessions(
        /** Seconds since 1970. */
        val expiresAt: Long,
    ) {
        internal fun fields() = fieldsOf("expires_at" to expiresAt)

        companion object {
            internal fun from(json: Json) = Sessions(
                expiresAt = json["expires_at"].long(),
            )
        }
    }

    data class Ban(
        val untilMs: Long,
        val reason: String,
    ) {
        internal fun fields() = fieldsOf("until_ms" to untilMs, "reason" to reason)

        companion object {
            internal fun from(json: Json) = Ban(
                untilMs = json["until_ms"].long(),
                reason = json["reason"].text(),
            )
        }
    }

    data class Blocks(
        val username: String,
        /** Seconds since 1970. */
        val blockedAt: Long,
    ) {
        internal fun fields() = fieldsOf("username" to username, "blocked_at" to blockedAt)

        companion object {
            internal fun from(json: Json) = Blocks(
                username = json["username"].text(),
                blockedAt = json["blocked_at"].long(),
            )
        }
    }

    data class Reports(
        val target: String,
        /** Seconds since 1970. */
        val reportedAt: Long,
    ) {
        internal fun fields() = fieldsOf("target" to target, "reported_at" to reportedAt)

        companion object {
            internal fun from(json: Json) = Reports(
                target = json["target"].text(),
                reportedAt = json["reported_at"].long(),
            )
        }
    }
}

data class Health(
    val status: String,
    val version: String? = null,
) {
    internal fun fields() = fieldsOf("status" to status, "version" to version)

    companion object {
        internal fun from(json: Json) = Health(
            status = json["status"].text(),
            version = json["version"].orNull { it.text() },
        )
    }
}

// ---- messages ------------------------------------------------------------------------------------

/** What the server sends. */
sealed interface ServerMessage {
    /** The type of the message. */
    val type: String

    companion object {
        /** Returns null for a type that is newer than this client. */
        internal fun from(json: Json): ServerMessage? = when (json["type"].text()) {
            "queued" -> QueuedMessage.from(json)
            "cancelled" -> CancelledMessage.from(json)
            "room" -> RoomMessage.from(json)
            "start" -> StartMessage.from(json)
            "question" -> QuestionMessage.from(json)
            "answered" -> AnsweredMessage.from(json)
            "reveal" -> RevealMessage.from(json)
            "update" -> UpdateMessage.from(json)
            "user_exit" -> UserExitMessage.from(json)
            "user_return" -> UserReturnMessage.from(json)
            "end" -> EndMessage.from(json)
            "rematch" -> RematchMessage.from(json)
            "pong" -> PongMessage.from(json)
            "notice" -> NoticeMessage.from(json)
            "error" -> ErrorMessage.from(json)
            "emoji" -> EmojiMessage.from(json)
            else -> null
        }
    }
}

/** What a client sends. */
sealed interface ClientMessage {
    fun fields(): Map<String, Any?>
}

/** The player waits in the queue. */
data class QueuedMessage(
    val queue: String,
    /** Time until `cancelled` if no game is found. */
    val timeoutMs: Long,
    /**
     * Time until the player can be matched. Present after games that they left before anybody had
     * answered.
     */
    val delayMs: Long? = null,
) : ServerMessage {
    override val type get() = "queued"

    companion object {
        internal fun from(json: Json) = QueuedMessage(
            queue = json["queue"].text(),
            timeoutMs = json["timeout_ms"].long(),
            delayMs = json["delay_ms"].orNull { it.long() },
        )
    }
}

/** The player is out of the queue or the room, or has left the game. */
data class CancelledMessage(
    val queue: String,
    val reason: String,
) : ServerMessage {
    override val type get() = "cancelled"

    companion object {
        internal fun from(json: Json) = CancelledMessage(
            queue = json["queue"].text(),
            reason = json["reason"].text(),
        )
    }
}

/**
 * The private room that the player is in: the reply to `join`, and after each change. After `end`
 * the players are in their room again.
 */
data class RoomMessage(
    /** Six letters and digits by which friends join. */
    val code: String,
    val queue: String,
    /** A username. */
    val host: String,
    val players: List<Player>,
    /** Usernames of the connected players. */
    val connected: List<String>,
    val locked: Boolean,
    val state: String,
    val settings: Rules,
) : ServerMessage {
    override val type get() = "room"

    companion object {
        internal fun from(json: Json) = RoomMessage(
            code = json["code"].text(),
            queue = json["queue"].text(),
            host = json["host"].text(),
            players = json["players"].list { Player.from(it) },
            connected = json["connected"].list { it.text() },
            locked = json["locked"].bool(),
            state = json["state"].text(),
            settings = Rules.from(json["settings"]),
        )
    }
}

/** A game starts. */
data class StartMessage(
    val game: String,
    /** Counts the messages of this game to this player: 1, 2, 3, ... */
    val seq: Int,
    val queue: String,
    val players: List<Player>,
    val rounds: Int,
    /** Time until the first question. */
    val startsMs: Long,
    /** With `total_seconds`: time left for all questions. */
    val totalMs: Long? = null,
    /** With `lives`: how many lives are left. */
    val lives: Int? = null,
    /** After a rematch; see there. */
    val series: Map<String, Int>? = null,
) : ServerMessage {
    override val type get() = "start"

    companion object {
        internal fun from(json: Json) = StartMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            queue = json["queue"].text(),
            players = json["players"].list { Player.from(it) },
            rounds = json["rounds"].int(),
            startsMs = json["starts_ms"].long(),
            totalMs = json["total_ms"].orNull { it.long() },
            lives = json["lives"].orNull { it.int() },
            series = json["series"].orNull { it.map { it.int() } },
        )
    }
}

/** A new question. Answers are accepted from now on. */
data class QuestionMessage(
    val game: String,
    val seq: Int,
    /** The number of the question, from 1. */
    val round: Int,
    val text: String,
    val choices: List<String>,
    val category: String,
    val difficulty: String,
    /** Time left to answer. */
    val answerMs: Long,
) : ServerMessage {
    override val type get() = "question"

    companion object {
        internal fun from(json: Json) = QuestionMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            round = json["round"].int(),
            text = json["text"].text(),
            choices = json["choices"].list { it.text() },
            category = json["category"].text(),
            difficulty = json["difficulty"].text(),
            answerMs = json["answer_ms"].long(),
        )
    }
}

/** Another player has answered. */
data class AnsweredMessage(
    val game: String,
    val seq: Int,
    val round: Int,
    val player: String,
) : ServerMessage {
    override val type get() = "answered"

    companion object {
        internal fun from(json: Json) = AnsweredMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            round = json["round"].int(),
            player = json["player"].text(),
        )
    }
}

/** The question is closed. Shows the right answer, all answers and the scores. */
data class RevealMessage(
    val game: String,
    val seq: Int,
    val round: Int,
    /** Index of the right choice. */
    val correct: Int,
    /** By username. Players without an answer are missing. */
    val answers: Map<String, Answers>,
    /** By username. */
    val scores: Map<String, Int>,
    /** Time until the next question or the end. */
    val revealMs: Long,
    val totalMs: Long? = null,
    val lives: Int? = null,
) : ServerMessage {
    override val type get() = "reveal"

    companion object {
        internal fun from(json: Json) = RevealMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            round = json["round"].int(),
            correct = json["correct"].int(),
            answers = json["answers"].map { Answers.from(it) },
            scores = json["scores"].map { it.int() },
            revealMs = json["reveal_ms"].long(),
            totalMs = json["total_ms"].orNull { it.long() },
            lives = json["lives"].orNull { it.int() },
        )
    }

    /** By username. Players without an answer are missing. */
    data class Answers(
        val choice: Int,
        val points: Int,
        val ms: Long,
    ) {
        internal fun fields() = fieldsOf("choice" to choice, "points" to points, "ms" to ms)

        companion object {
            internal fun from(json: Json) = Answers(
                choice = json["choice"].int(),
                points = json["points"].int(),
                ms = json["ms"].long(),
            )
        }
    }
}

/**
 * The whole game as this player sees it. It is the reply to `check`, the first message after a
 * reconnect, and tells that another player has taken the seat of a bot.
 */
data class UpdateMessage(
    val game: String,
    /** The `seq` of the last message that this snapshot includes. */
    val seq: Int,
    val queue: String,
    val players: List<Player>,
    /** Usernames of the connected players. */
    val connected: List<String>,
    val rounds: Int,
    /** 0 before the first question. */
    val round: Int,
    val phase: String,
    /** Time until this phase ends. */
    val leftMs: Long,
    val scores: Map<String, Int>,
    val totalMs: Long? = null,
    val lives: Int? = null,
    val series: Map<String, Int>? = null,
    /**
     * Present in the phases `question` and `reveal`, but not for a player who came after the
     * question.
     */
    val question: Question? = null,
    /** This player's answer to the question. */
    val choice: Int? = null,
    /** Usernames of those who have answered it. */
    val answered: List<String>? = null,
    /** Present in the phase `reveal`: index of the right choice. */
    val correct: Int? = null,
    /** Present in the phase `reveal`, in the same form as there. */
    val answers: Any? = null,
) : ServerMessage {
    override val type get() = "update"

    companion object {
        internal fun from(json: Json) = UpdateMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            queue = json["queue"].text(),
            players = json["players"].list { Player.from(it) },
            connected = json["connected"].list { it.text() },
            rounds = json["rounds"].int(),
            round = json["round"].int(),
            phase = json["phase"].text(),
            leftMs = json["left_ms"].long(),
            scores = json["scores"].map { it.int() },
            totalMs = json["total_ms"].orNull { it.long() },
            lives = json["lives"].orNull { it.int() },
            series = json["series"].orNull { it.map { it.int() } },
            question = json["question"].orNull { Question.from(it) },
            choice = json["choice"].orNull { it.int() },
            answered = json["answered"].orNull { it.list { it.text() } },
            correct = json["correct"].orNull { it.int() },
            answers = json["answers"].value,
        )
    }

    /**
     * Present in the phases `question` and `reveal`, but not for a player who came after the question.
     */
    data class Question(
        val round: Int? = null,
        val text: String? = null,
        val choices: List<String>? = null,
        val category: String? = null,
        val difficulty: String? = null,
    ) {
        internal fun fields() = fieldsOf("round" to round, "text" to text, "choices" to choices, "category" to category, "difficulty" to difficulty)

        companion object {
            internal fun from(json: Json) = Question(
                round = json["round"].orNull { it.int() },
                text = json["text"].orNull { it.text() },
                choices = json["choices"].orNull { it.list { it.text() } },
                category = json["category"].orNull { it.text() },
                difficulty = json["difficulty"].orNull { it.text() },
            )
        }
    }
}

/** A player has left, or has lost the connection. */
data class UserExitMessage(
    val game: String,
    val seq: Int,
    val player: String,
    /** The player can return within this time; 0: they have left. */
    val returnsMs: Long,
) : ServerMessage {
    override val type get() = "user_exit"

    companion object {
        internal fun from(json: Json) = UserExitMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            player = json["player"].text(),
            returnsMs = json["returns_ms"].long(),
        )
    }
}

/** A player has reconnected, or has joined a running game (`late_join`). */
data class UserReturnMessage(
    val game: String,
    val seq: Int,
    val player: String,
) : ServerMessage {
    override val type get() = "user_return"

    companion object {
        internal fun from(json: Json) = UserReturnMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            player = json["player"].text(),
        )
    }
}

/** The game has ended. */
data class EndMessage(
    val game: String,
    val seq: Int,
    /** The operator has ended it: `stopped` counts, `void` does not. */
    val reason: String,
    val ranking: List<Ranking>,
    /** With `rematch_seconds`: time to agree to play again. */
    val rematchMs: Long? = null,
    /** See `rematch`. */
    val series: Map<String, Int>? = null,
) : ServerMessage {
    override val type get() = "end"

    companion object {
        internal fun from(json: Json) = EndMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            reason = json["reason"].text(),
            ranking = json["ranking"].list { Ranking.from(it) },
            rematchMs = json["rematch_ms"].orNull { it.long() },
            series = json["series"].orNull { it.map { it.int() } },
        )
    }

    data class Ranking(
        val player: String,
        val score: Int,
        /** From 1. Equal scores have the same rank. */
        val rank: Int,
        /** The new rating. Only in rated queues. */
        val rating: Int? = null,
        val ratingChange: Int? = null,
        /** Present, and true, while the rating is uncertain. */
        val provisional: Boolean? = null,
        /** Present, and true, if it is a bot. */
        val bot: Boolean? = null,
        /**
         * Present, and false, if the game changes no field of this player. That is so if nobody has
         * answered a question (such a game is not kept either), if a bot has played, or if the player
         * has met all of these opponents too often today.
         */
        val counts: Boolean? = null,
    ) {
        internal fun fields() = fieldsOf("player" to player, "score" to score, "rank" to rank, "rating" to rating, "rating_change" to ratingChange, "provisional" to provisional, "bot" to bot, "counts" to counts)

        companion object {
            internal fun from(json: Json) = Ranking(
                player = json["player"].text(),
                score = json["score"].int(),
                rank = json["rank"].int(),
                rating = json["rating"].orNull { it.int() },
                ratingChange = json["rating_change"].orNull { it.int() },
                provisional = json["provisional"].orNull { it.bool() },
                bot = json["bot"].orNull { it.bool() },
                counts = json["counts"].orNull { it.bool() },
            )
        }
    }
}

/**
 * Who wants to play the last game again, after each change. When all do, `start` follows. At the
 * end of the time it follows for those who do, if they are enough.
 */
data class RematchMessage(
    /** The game that has ended. */
    val game: String,
    /** Usernames of those who have agreed. */
    val players: List<String>,
    /** Usernames of those who are connected. */
    val connected: List<String>,
    /** Usernames of those who are out: they declined or play elsewhere. */
    val declined: List<String>,
    /** Time left to agree; 0: there will be no rematch with this player. */
    val expiresMs: Long,
    /** Of two players: the games that each has won of those in a row, by username. */
    val series: Map<String, Int>? = null,
) : ServerMessage {
    override val type get() = "rematch"

    companion object {
        internal fun from(json: Json) = RematchMessage(
            game = json["game"].text(),
            players = json["players"].list { it.text() },
            connected = json["connected"].list { it.text() },
            declined = json["declined"].list { it.text() },
            expiresMs = json["expires_ms"].long(),
            series = json["series"].orNull { it.map { it.int() } },
        )
    }
}

/** The reply to `ping`. */
data class PongMessage(
    /** Time of the server, in ms since 1970. */
    val serverMs: Long,
    val clientMs: Double? = null,
) : ServerMessage {
    override val type get() = "pong"

    companion object {
        internal fun from(json: Json) = PongMessage(
            serverMs = json["server_ms"].long(),
            clientMs = json["client_ms"].orNull { it.double() },
        )
    }
}

/** A message from the operator to all players. */
data class NoticeMessage(
    val code: String,
    val text: String,
    /** In ms since 1970: when the maintenance begins, or until when the message holds. */
    val untilMs: Long,
) : ServerMessage {
    override val type get() = "notice"

    companion object {
        internal fun from(json: Json) = NoticeMessage(
            code = json["code"].text(),
            text = json["text"].text(),
            untilMs = json["until_ms"].long(),
        )
    }
}

/** A message was refused. The connection stays open. */
data class ErrorMessage(
    /** A stable code, for programs. */
    val code: String,
    /** What was wrong and what was expected, for people. */
    val message: String,
    /** The `id` of the refused message. */
    val id: Any? = null,
    /** What is wrong, by field. */
    val errors: Any? = null,
) : ServerMessage {
    override val type get() = "error"

    companion object {
        internal fun from(json: Json) = ErrorMessage(
            code = json["code"].text(),
            message = json["message"].text(),
            id = json["id"].value,
            errors = json["errors"].value,
        )
    }
}

/** Another player sent emoji. */
data class EmojiMessage(
    val game: String,
    val seq: Int,
    val player: String,
    val emoji: String,
) : ServerMessage {
    override val type get() = "emoji"

    companion object {
        internal fun from(json: Json) = EmojiMessage(
            game = json["game"].text(),
            seq = json["seq"].int(),
            player = json["player"].text(),
            emoji = json["emoji"].text(),
        )
    }
}

/** The player's answer. Only the first answer to a question counts. */
data class AnswerFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** The round of the question. */
    val round: Int,
    /** Index into `choices`, from 0. */
    val choice: Int,
    /** Optional: must be the id of the current game. */
    val game: String? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "answer", "id" to id, "round" to round, "choice" to choice, "game" to game)

}

/** Asks for an `update`. */
data class CheckFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "check", "id" to id)

}

/** A reaction. The opponents see it. */
data class EmojiFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    val emoji: String,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "emoji", "id" to id, "emoji" to emoji)

}

/** Asks for a `pong`, with which a client can measure the offset of its clock. */
data class PingFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** The `pong` returns it unchanged. */
    val clientMs: Double? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "ping", "id" to id, "client_ms" to clientMs)

}

/** The player wants to play the last game again with the same players, or does not. */
data class RematchFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    val accept: Boolean,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "rematch", "id" to id, "accept" to accept)

}

/** Joins a queue on the same WebSocket, after `end` or `cancelled`. */
data class JoinFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** Optional: a queue. Default: the previous one. */
    val queue: String? = null,
    /**
     * Optional: the code of a private room or of a challenge, whose queue counts then. Without it,
     * a queue with `match: room` opens a new room.
     */
    val code: String? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "join", "id" to id, "queue" to queue, "code" to code)

}

/** Leaves the queue, the room, or the game for good. */
data class LeaveFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "leave", "id" to id)

}

/**
 * The player finds a question wrong. It is one of the game they are in, or of the last one, and its
 * answer was revealed. Each player counts once.
 */
data class FlagFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** The round of the question. */
    val round: Int,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "flag", "id" to id, "round" to round)

}

/** The host of a room begins a game of all who are connected. */
data class BeginFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "begin", "id" to id)

}

/** The host sends a player away from the room, and out of its game. They can't come back. */
data class KickFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** A username. */
    val player: String,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "kick", "id" to id, "player" to player)

}

/** The host lets no new player into the room, or lets them in again. */
data class LockFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    val locked: Boolean,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "lock", "id" to id, "locked" to locked)

}

/** The host makes another player the host. */
data class PassFields(
    /** Repeated in an `error` about this message. */
    val id: Any? = null,
    /** A username. */
    val player: String,
) : ClientMessage {
    override fun fields() = fieldsOf("type" to "pass", "id" to id, "player" to player)

}

/** The codes of errors, over HTTP and in `error` messages. */
val ERROR_CODES = setOf("bad_request", "bad_json", "not_authenticated", "bad_credentials", "bad_id_token", "bad_merge_token", "bad_code", "banned", "wrong_password", "sign_in_again", "origin_refused", "not_found", "method_not_allowed", "body_timeout", "unknown_code", "expired_code", "already_reported", "blocks_full", "has_account", "not_a_guest", "identity_taken", "in_game", "provider_linked", "last_sign_in", "ambiguous", "too_large", "unsupported_media_type", "invalid", "app_too_old", "upgrade_required", "malformed_code", "yourself", "too_many_attempts", "head_too_large", "registration_closed", "queue_closed", "maintenance", "no_mail", "provider_unavailable", "guests_full", "reports_full", "internal", "unavailable", "username_taken", "email_taken", "late_answer", "already_answered", "wrong_round", "not_revealed", "wrong_game", "no_such_choice", "not_playing", "unknown_queue", "queue_full", "already_played", "code_needed", "own_challenge", "challenge_played", "challenge_full", "room_full", "room_locked", "kicked", "rematch_over", "not_in_room", "not_host", "room_plays", "too_few_players", "no_such_player", "not_text", "too_fast", "bad_message", "unknown_type", "invalid_message", "wrong_state")

/** The queues of the server. */
val QUEUES = listOf("random", "rated", "party", "solo", "daily", "friends", "challenge")

// ---- JSON ----------------------------------------------------------------------------------------

/** A value of a JSON document. What is missing or of another type raises TriviaException. */
internal class Json(val value: Any?) {
    operator fun get(name: String): Json = Json((value as? Map<*, *>)?.get(name))
    fun text(): String = expect(value as? String)
    fun int(): Int = expect(value as? Number).toInt()
    fun long(): Long = expect(value as? Number).toLong()
    fun double(): Double = expect(value as? Number).toDouble()
    fun bool(): Boolean = expect(value as? Boolean)
    fun <T> list(read: (Json) -> T): List<T> = expect(value as? List<*>).map { read(Json(it)) }
    fun <T> map(read: (Json) -> T): Map<String, T> =
        expect(value as? Map<*, *>).entries.associate { (name, one) -> name as String to read(Json(one)) }

    fun <T> orNull(read: (Json) -> T): T? = if (value == null) null else read(this)

    private fun <T> expect(found: T?): T = found ?: throw TriviaException(0, "bad_answer", "unexpected: $value")

    companion object {
        fun parse(text: String): Json = Json(JsonReader(text).document())

        fun write(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

        private fun write(value: Any?, to: StringBuilder) {
            when (value) {
                is String -> quote(value, to)
                is Map<*, *> -> value.entries.joinTo(to, ",", "{", "}") { (name, one) -> write(name) + ":" + write(one) }
                is List<*> -> value.joinTo(to, ",", "[", "]") { write(it) }
                else -> to.append(value)
            }
        }

        private fun quote(text: String, to: StringBuilder) {
            to.append('"')
            for (c in text) {
                if (c == '"' || c == '\\') to.append('\\').append(c)
                else if (c < ' ') to.append(String.format("\\u%04x", c.code))
                else to.append(c)
            }
            to.append('"')
        }
    }
}

/** Reads JSON: objects as Map, arrays as List, numbers as Long or Double. */
private class JsonReader(private val text: String) {
    private var at = 0

    fun document(): Any? = value().also { skip(); if (at < text.length) fail() }

    private fun fail(): Nothing = throw TriviaException(0, "bad_answer", "no JSON at character $at")

    private fun skip() {
        while (at < text.length && text[at] <= ' ') at++
    }

    private fun peek(): Char {
        skip()
        return if (at < text.length) text[at] else fail()
    }

    private fun take(c: Char): Boolean = (peek() == c).also { if (it) at++ }

    private fun word(word: String, value: Any?): Any? =
        if (text.startsWith(word, at)) value.also { at += word.length } else fail()

    private fun value(): Any? = when (peek()) {
        '{' -> members()
        '[' -> items()
        '"' -> string()
        't' -> word("true", true)
        'f' -> word("false", false)
        'n' -> word("null", null)
        else -> number()
    }

    private fun members(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        at++
        if (take('}')) return found
        do {
            if (peek() != '"') fail()
            val name = string()
            if (!take(':')) fail()
            found[name] = value()
        } while (take(','))
        return if (take('}')) found else fail()
    }

    private fun items(): List<Any?> {
        val found = ArrayList<Any?>()
        at++
        if (take(']')) return found
        do found.add(value()) while (take(','))
        return if (take(']')) found else fail()
    }

    private fun string(): String {
        val found = StringBuilder()
        at++
        while (true) {
            val c = text.getOrElse(at++) { fail() }
            if (c == '"') return found.toString()
            found.append(if (c == '\\') escaped() else c)
        }
    }

    private fun escaped(): Char = when (val c = text.getOrElse(at++) { fail() }) {
        'n' -> '\n'
        't' -> '\t'
        'r' -> '\r'
        'b' -> '\b'
        'f' -> '\u000c'
        'u' -> {
            at += 4
            (if (at <= text.length) text.substring(at - 4, at).toIntOrNull(16) else null)?.toChar() ?: fail()
        }
        else -> c
    }

    private fun number(): Number {
        val from = at
        while (at < text.length && text[at] in "+-.eE0123456789") at++
        val found = text.substring(from, at)
        return found.toLongOrNull() ?: found.toDoubleOrNull() ?: fail()
    }
}

/** Fields of a body or a message, without those that were left out. */
private fun fieldsOf(vararg fields: Pair<String, Any?>): Map<String, Any?> =
    fields.filter { it.second != null }.toMap()

// ---- HTTP ----------------------------------------------------------------------------------------

/** An error of the server, or of the way to it (`status` 0, `code` "network"). */
class TriviaException(
    val status: Int,
    val code: String,
    message: String,
    /** What is wrong, by field. */
    val errors: Map<String, List<String>> = emptyMap(),
    /** Seconds to wait before another try; 0 if the server names none. */
    val retryAfter: Int = 0,
    /** All that the server says: `merge`, `guest` and `account` of `identity_taken`, the end of a ban. */
    val problem: Problem? = null,
) : IOException(message)

/** What the server is told of an app. It may require a newer version. */
data class App(val name: String, val version: String)

/**
 * A player's account on a server. Its functions block, and raise TriviaException.
 *
 * `onToken` gets each new token, to be kept, and null when the session has ended.
 */
class Trivia(
    url: String,
    token: String? = null,
    private val timeoutMs: Int = 15_000,
    internal val app: App? = null,
    private val onToken: (String?) -> Unit = {},
) {
    val url: String = url.trimEnd('/')

    @Volatile
    var token: String? = token
        private set

    /** Joins a queue, or resumes the game in progress. Handlers run on `callbacks`. */
    fun play(queue: String, fields: JoinFields = JoinFields(), callbacks: Executor? = null): Play =
        Play(this, queue, fields, callbacks)

    /** Keeps the token of a session, or forgets it. */
    @Synchronized
    fun setToken(token: String?) {
        if (token == this.token) return
        this.token = token
        onToken(token)
    }

    /** Creates an account and signs in. It can be repeated if the reply was lost. */
    fun register(body: NewUser): Session {
        val session = Session.from(request("POST", "/auth/register", emptyMap(), body.fields()))
        setToken(session.token)
        return session
    }

    /** Creates a guest, or signs in the same guest again (200). */
    fun guest(body: Guest): Session {
        val session = Session.from(request("POST", "/auth/guest", emptyMap(), body.fields()))
        setToken(session.token)
        return session
    }

    /** Gives a guest an account. They keep everything, also their username if they send none. */
    fun upgrade(body: Upgrade): Upgraded {
        return Upgraded.from(request("POST", "/auth/upgrade", emptyMap(), body.fields()))
    }

    /** Mails a code for a new password, if the account exists and has an address. */
    fun recover(body: Recovery) {
        request("POST", "/auth/recover", emptyMap(), body.fields())
    }

    /** Sets a new password with a code, ends all sessions and signs in. */
    fun reset(body: Reset): Session {
        val session = Session.from(request("POST", "/auth/reset", emptyMap(), body.fields()))
        setToken(session.token)
        return session
    }

    /** Sends a code that confirms an address: the caller's present address or a new one. */
    fun sendConfirmation(body: ConfirmationMail) {
        request("POST", "/auth/confirm/send", emptyMap(), body.fields())
    }

    /** Confirms the address that a code was sent to. It becomes the caller's. */
    fun confirm(body: Confirmation) {
        request("POST", "/auth/confirm", emptyMap(), body.fields())
    }

    /** Signs in. */
    fun login(body: Login): Session {
        val session = Session.from(request("POST", "/auth/login", emptyMap(), body.fields()))
        setToken(session.token)
        return session
    }

    /** Ends this session. */
    fun logout() {
        request("POST", "/auth/logout", emptyMap(), null)
        setToken(null)
    }

    /** Ends all sessions of the caller, on every device. */
    fun endSessions() {
        request("DELETE", "/auth/sessions", emptyMap(), null)
        setToken(null)
    }

    /** Changes the password and ends all other sessions. */
    fun changePassword(body: PasswordChange) {
        request("POST", "/auth/password", emptyMap(), body.fields())
    }

    /** Returns the caller's account. */
    fun readMe(): User {
        return User.from(request("GET", "/users/me", emptyMap(), null))
    }

    /** Changes fields of the caller's account. A new sign-in name takes the present password. */
    fun changeMe(body: UserChanges): User {
        return User.from(request("PATCH", "/users/me", emptyMap(), body.fields()))
    }

    /** Erases the caller's account and all personal data. */
    fun eraseMe(body: PasswordConfirmation) {
        request("DELETE", "/users/me", emptyMap(), body.fields())
        setToken(null)
    }

    /** Returns all data that is stored about the caller. */
    fun exportMe(): Export {
        return Export.from(request("GET", "/users/me/export", emptyMap(), null))
    }

    /** Returns the caller's finished games, newest first. */
    fun myGames(limit: Int? = null, cursor: String? = null): GameList {
        return GameList.from(request("GET", "/users/me/games", fieldsOf("limit" to limit, "cursor" to cursor), null))
    }

    /** Reports a player or a question to the operator, once each. */
    fun report(body: Report): ReportReceipt {
        return ReportReceipt.from(request("POST", "/reports", emptyMap(), body.fields()))
    }

    /** Returns the public fields of a player; 404 if caller or player has blocked the other. */
    fun readUser(username: String): Player {
        return Player.from(request("GET", "/users/${part(username)}", emptyMap(), null))
    }

    /** Blocks a player: neither meets the other in a queue, or gets messages of the other. */
    fun blockUser(username: String) {
        request("PUT", "/users/${part(username)}/block", emptyMap(), null)
    }

    /** Lifts the caller's block of a player, if there is one. */
    fun liftBlock(username: String) {
        request("DELETE", "/users/${part(username)}/block", emptyMap(), null)
    }

    /** Returns the players whom the caller has blocked, the latest first. */
    fun myBlocks(): BlockList {
        return BlockList.from(request("GET", "/users/me/blocks", emptyMap(), null))
    }

    /** Returns a finished game of the caller with all its rounds. */
    fun readGame(id: String): GameRecord {
        return GameRecord.from(request("GET", "/games/${part(id)}", emptyMap(), null))
    }

    /** Returns a page of a leaderboard, highest value first. */
    fun readLeaderboard(name: String, limit: Int? = null, offset: Int? = null, around: String? = null): Leaderboard {
        return Leaderboard.from(request("GET", "/leaderboards/${part(name)}", fieldsOf("limit" to limit, "offset" to offset, "around" to around), null))
    }

    /** Returns the queues: their rules, and how many players wait and play. */
    fun readQueues(): QueueList {
        return QueueList.from(request("GET", "/queues", emptyMap(), null))
    }

    /** Makes a challenge, which the caller and their friends play by its code. */
    fun makeChallenge(body: ChallengeQueue): NewChallenge {
        return NewChallenge.from(request("POST", "/challenges", emptyMap(), body.fields()))
    }

    /** Returns the challenges that the caller has made or played, open and finished ones. */
    fun myChallenges(): ChallengeList {
        return ChallengeList.from(request("GET", "/challenges", emptyMap(), null))
    }

    /** Returns a challenge, with its rounds once the caller has played it. */
    fun readChallenge(code: String): Challenge {
        return Challenge.from(request("GET", "/challenges/${part(code)}", emptyMap(), null))
    }

    /** Returns a private room, for the preview of a link to it. */
    fun readRoom(code: String): Room {
        return Room.from(request("GET", "/rooms/${part(code)}", emptyMap(), null))
    }

    /** Tells that the process answers, and its version. */
    fun live(): Health {
        return Health.from(request("GET", "/health/live", emptyMap(), null))
    }

    /** Tells whether the server can serve players: Redis answers and no restart is under way. */
    fun ready(): Health {
        return Health.from(request("GET", "/health/ready", emptyMap(), null))
    }

    private fun request(method: String, path: String, query: Map<String, Any?>, body: Map<String, Any?>?): Json {
        val sent = token
        val headers = app?.let { mapOf("X-App" to it.name, "X-Version" to it.version) }.orEmpty() +
            sent?.let { mapOf("Authorization" to "Bearer $it") }.orEmpty()
        val answer = try {
            httpRequest(method, url + path + queryString(query), headers, body?.let(Json::write), timeoutMs)
        } catch (error: IOException) {
            throw TriviaException(0, "network", "no answer from $url: $error")
        }
        if (answer.status in 200..299) return if (answer.body.isEmpty()) Json(null) else Json.parse(answer.body)
        val error = answer.problem()
        if (error.code == "not_authenticated" && sent == token) setToken(null)
        throw error
    }
}

private fun part(text: String): String = URLEncoder.encode(text, "UTF-8").replace("+", "%20")

private fun queryString(values: Map<String, Any?>): String {
    if (values.isEmpty()) return ""
    return values.entries.joinToString("&", "?") { (name, value) -> part(name) + "=" + part(value.toString()) }
}

private class HttpAnswer(val status: Int, val headers: Map<String, String>, val body: String) {
    fun problem(): TriviaException {
        // A proxy in front may answer in a form of its own.
        val problem = try { Json.parse(body) } catch (_: TriviaException) { Json(null) }
        return TriviaException(
            status,
            problem["code"].orNull { it.text() } ?: "internal",
            problem["detail"].orNull { it.text() } ?: "the server answered $status",
            problem["errors"].orNull { errors -> errors.map { texts -> texts.list { it.text() } } } ?: emptyMap(),
            headers["retry-after"]?.toIntOrNull() ?: 0,
            try { Problem.from(problem) } catch (_: TriviaException) { null },
        )
    }
}

private fun openSocket(uri: URI, timeoutMs: Int): Socket {
    val isTls = uri.scheme == "https" || uri.scheme == "wss"
    val port = if (uri.port > 0) uri.port else if (isTls) 443 else 80
    val plain = Socket()
    try {
        plain.connect(InetSocketAddress(uri.host.trim('[', ']'), port), timeoutMs)
        plain.soTimeout = timeoutMs
        plain.tcpNoDelay = true
        if (!isTls) return plain
        val factory = SSLSocketFactory.getDefault() as SSLSocketFactory
        val tls = factory.createSocket(plain, uri.host, port, true) as SSLSocket
        tls.sslParameters = tls.sslParameters.apply { endpointIdentificationAlgorithm = "HTTPS" }
        tls.startHandshake()
        return tls
    } catch (error: IOException) {
        plain.close()
        throw error
    }
}

private fun pathOf(uri: URI): String = uri.rawPath + (uri.rawQuery?.let { "?$it" } ?: "")

private fun httpRequest(
    method: String,
    url: String,
    headers: Map<String, String>,
    body: String?,
    timeoutMs: Int,
): HttpAnswer {
    val uri = URI(url)
    val data = body?.toByteArray() ?: ByteArray(0)
    val head = StringBuilder("$method ${pathOf(uri)} HTTP/1.1\r\nHost: ${uri.rawAuthority}\r\nConnection: close\r\n")
    head.append("Accept: application/json\r\n")
    for ((name, value) in headers) head.append("$name: $value\r\n")
    if (body != null) head.append("Content-Type: application/json\r\nContent-Length: ${data.size}\r\n")
    openSocket(uri, timeoutMs).use { socket ->
        socket.getOutputStream().apply { write(head.append("\r\n").toString().toByteArray() + data); flush() }
        val input = socket.getInputStream().buffered()
        val (status, found) = readHead(input)
        return HttpAnswer(status, found, String(readBody(input, status, found)))
    }
}

private fun readLine(input: InputStream): String {
    val line = ByteArrayOutputStream()
    while (true) {
        val byte = input.read()
        if (byte < 0 || line.size() > 16_384) throw EOFException("the connection ended within the head")
        if (byte == '\n'.code) return line.toString("ISO-8859-1").trimEnd('\r')
        line.write(byte)
    }
}

private fun readHead(input: InputStream): Pair<Int, Map<String, String>> {
    val status = readLine(input).split(' ').getOrNull(1)?.toIntOrNull() ?: throw IOException("no HTTP")
    val headers = HashMap<String, String>()
    while (true) {
        val line = readLine(input)
        if (line.isEmpty()) return status to headers
        headers[line.substringBefore(':').lowercase()] = line.substringAfter(':').trim()
    }
}

private fun readBody(input: InputStream, status: Int, headers: Map<String, String>): ByteArray {
    if (status == 204) return ByteArray(0)
    val data = DataInputStream(input)
    val length = headers["content-length"]?.toIntOrNull()
    if (length != null) return ByteArray(length).also(data::readFully)
    if (headers["transfer-encoding"]?.lowercase() != "chunked") return input.readBytes()
    val body = ByteArrayOutputStream()
    while (true) {
        val size = readLine(input).substringBefore(';').trim().toInt(16)
        body.write(ByteArray(size).also(data::readFully))
        readLine(input)
        if (size == 0) return body.toByteArray()
    }
}

// ---- WebSocket -----------------------------------------------------------------------------------

/** Why a connection ended: a close code, 0 if there was none, and what the server said. */
private class Close(val code: Int, val reason: String = "")

/** A WebSocket (RFC 6455) without extensions. `opened`, `received` and `closed` run on its own thread. */
private class WebSocket(
    private val url: String,
    private val protocols: List<String>,
    private val opened: (WebSocket) -> Unit,
    private val received: (WebSocket, String) -> Unit,
    private val closed: (WebSocket, Close) -> Unit,
) {
    @Volatile
    private var socket: Socket? = null

    @Volatile
    private var dropped = false

    fun start() {
        Thread({ closed(this, run()) }, "trivia-socket").apply { isDaemon = true }.start()
    }

    fun send(text: String): Boolean = try { frame(TEXT, text.toByteArray()); true } catch (_: IOException) { false }

    /** Closes the connection without a farewell. */
    fun drop() {
        dropped = true
        try { socket?.close() } catch (_: IOException) { }
    }

    private fun run(): Close {
        try {
            val uri = URI(url)
            val connected = openSocket(uri, CONNECT_MS)
            socket = connected
            if (dropped) connected.close()
            val key = ByteArray(16).also(random::nextBytes)
            val head = "GET ${pathOf(uri)} HTTP/1.1\r\nHost: ${uri.rawAuthority}\r\nUpgrade: websocket\r\n" +
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${base64(key)}\r\n" +
                "Sec-WebSocket-Protocol: ${protocols.joinToString(", ")}\r\n\r\n"
            connected.getOutputStream().apply { write(head.toByteArray()); flush() }
            val input = DataInputStream(connected.getInputStream().buffered())
            val (status, _) = readHead(input)
            if (status != 101) return Close(codeOf(status))
            connected.soTimeout = 0
            opened(this)
            return readFrames(input)
        } catch (_: IOException) {
            return Close(0)
        } finally {
            drop()
        }
    }

    /** Returns the close code that says the same as an HTTP status. */
    private fun codeOf(status: Int): Int = when (status) {
        401 -> 4401
        426 -> 4426
        429 -> 4429
        in 400..499 -> 1008
        else -> 1013
    }

    private fun readFrames(input: DataInputStream): Close {
        val text = ByteArrayOutputStream()
        while (true) {
            val head = input.readUnsignedByte()
            val short = input.readUnsignedByte() and 127
            val size = if (short == 126) input.readUnsignedShort() else if (short == 127) input.readLong().toInt() else short
            if (size !in 0..MAX_FRAME || text.size() + size > MAX_FRAME) return Close(1009)
            val data = ByteArray(size).also(input::readFully)
            when (head and 15) {
                TEXT, CONTINUATION -> {
                    text.write(data)
                    if (head and 128 != 0) {
                        received(this, text.toString("UTF-8"))
                        text.reset()
                    }
                }
                PING -> frame(PONG, data)
                CLOSE -> return closeOf(data)
            }
        }
    }

    private fun closeOf(data: ByteArray): Close {
        if (data.size < 2) return Close(0)
        val code = (data[0].toInt() and 255 shl 8) or (data[1].toInt() and 255)
        return Close(code, String(data, 2, data.size - 2))
    }

    @Synchronized
    private fun frame(kind: Int, data: ByteArray) {
        val output = socket?.getOutputStream() ?: throw IOException("not connected")
        val mask = ByteArray(4).also(random::nextBytes)
        val frame = ByteArrayOutputStream(data.size + 14)
        frame.write(128 or kind)
        if (data.size < 126) frame.write(128 or data.size)
        else frame.write(byteArrayOf(254.toByte(), (data.size shr 8).toByte(), data.size.toByte()))
        frame.write(mask)
        for ((i, byte) in data.withIndex()) frame.write(byte.toInt() xor mask[i and 3].toInt())
        output.write(frame.toByteArray())
        output.flush()
    }

    companion object {
        const val CONTINUATION = 0
        const val TEXT = 1
        const val CLOSE = 8
        const val PING = 9
        const val PONG = 10
        const val MAX_FRAME = 1 shl 20
        val random = SecureRandom()
        const val DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

        /** Encodes 16 bytes. Android has Base64 elsewhere than Java 8. */
        fun base64(data: ByteArray): String = data.toList().chunked(3).joinToString("") { bytes ->
            val bits = bytes.foldIndexed(0) { i, sum, byte -> sum or (byte.toInt() and 255 shl 16 - 8 * i) }
            (0..3).joinToString("") { i -> if (i > bytes.size) "=" else DIGITS[bits shr 18 - 6 * i and 63].toString() }
        }
    }
}

// ---- play ----------------------------------------------------------------------------------------

/** What is known of the connection. */
sealed interface Link {
    object Connecting : Link
    object Online : Link

    /** The next try comes after this time. */
    data class Waiting(val pauseMs: Long) : Link

    /** `detail` is what the server says of it; for OUTDATED, the address of a new version. */
    data class Closed(val reason: CloseReason, val detail: String = "") : Link
}

/** Why a connection is closed for good. */
enum class CloseReason {
    /** The game or the wait for one has ended, or `close` was called. `join` connects again. */
    DONE,

    /** The session has ended. Sign in again. */
    SIGNED_OUT,

    /** The player plays on another device. */
    REPLACED,

    /** The player may not play. */
    BANNED,

    /** The app is too old. */
    OUTDATED,

    /** The server does not understand this client, or has no such queue. */
    REFUSED,
}

/** What happens. SETTLE: the result is being computed. */
enum class Phase { NONE, QUEUED, START, QUESTION, REVEAL, SETTLE, END, CANCELLED }

data class Answer(val choice: Int, val points: Int, val ms: Long)

data class QuestionView(
    val round: Int,
    val text: String,
    val choices: List<String>,
    val category: String,
    val difficulty: String,
)

/** The game as this player knows it. */
data class Game(
    val phase: Phase = Phase.NONE,
    val id: String = "",
    val players: List<Player> = emptyList(),
    val rounds: Int = 0,
    val round: Int = 0,
    val question: QuestionView? = null,
    /** This player's answer to the question: an index into its choices. */
    val choice: Int? = null,
    /** The right choice, once it is revealed. */
    val correct: Int? = null,
    /** Usernames of others who have answered. */
    val answered: List<String> = emptyList(),
    /** All answers, once they are revealed. */
    val answers: Map<String, Answer> = emptyMap(),
    val scores: Map<String, Int> = emptyMap(),
    /** Usernames of players without a connection. */
    val away: Set<String> = emptySet(),
    val end: EndMessage? = null,
    val reason: String = "",
)

private val FINAL = mapOf(
    1008 to CloseReason.REFUSED,
    4400 to CloseReason.REFUSED,
    4401 to CloseReason.SIGNED_OUT,
    4403 to CloseReason.BANNED,
    4409 to CloseReason.REPLACED,
    4413 to CloseReason.REFUSED,
    4426 to CloseReason.OUTDATED,
)
private const val RESTART = 1012
private val BUSY = setOf(1013, 4429)
private const val CONNECT_MS = 10_000 // for a handshake
private const val SILENCE_MS = 20_000L // after which a `ping` asks whether the connection is alive
private const val REPLY_MS = 8_000L // in which anything must arrive after a `ping`
private const val MAX_PAUSE_MS = 15_000L
private const val BUSY_PAUSE_MS = 6_000L
private const val RETRY_ANSWER_MS = 500L

/** A player's connection to the game. It reconnects by itself, and misses nothing. Any thread may call it. */
class Play internal constructor(
    private val trivia: Trivia,
    private var queue: String,
    private var joinFields: JoinFields,
    private val callbacks: Executor?,
) {
    /** The game as this player knows it. */
    @Volatile
    var game = Game()
        private set

    /** The private room that the player is in: who is its host, who is there, whether it is locked. */
    @Volatile
    var room: RoomMessage? = null
        private set

    @Volatile
    var link: Link = Link.Connecting
        private set

    private class Unsure(val game: String, val round: Int, val choice: Int)

    // Everything below is used by this one thread.
    private val thread: ScheduledExecutorService =
        ScheduledThreadPoolExecutor(1) { work -> Thread(work, "trivia-play").apply { isDaemon = true } }
            .apply { removeOnCancelPolicy = true }
    private val messageHandlers = ArrayList<(ServerMessage) -> Unit>()
    private val changeHandlers = ArrayList<(Game) -> Unit>()
    private val linkHandlers = ArrayList<(Link) -> Unit>()
    private var socket: WebSocket? = null
    private var isOpen = false
    private var timer: ScheduledFuture<*>? = null
    private var alive: ScheduledFuture<*>? = null
    private var wanted = true // whether a lost connection is made again
    private var failures = 0
    private var joined = false // whether the server has answered to the fields of the join
    private var seq = 0
    private var checking = false // an `update` is on its way
    private var unsure: Unsure? = null
    private var sent = 0

    @Volatile
    private var deadline = 0L // end of the phase, in ns of System.nanoTime

    init {
        thread.execute { connect() }
    }

    /** Calls a function at each message. */
    fun onMessage(handler: (ServerMessage) -> Unit) = thread.execute { messageHandlers.add(handler) }

    /** Calls a function after each change of the game or the connection: draw it anew. */
    fun onChange(handler: (Game) -> Unit) = thread.execute { changeHandlers.add(handler) }

    /** Calls a function after each change of the connection. */
    fun onLink(handler: (Link) -> Unit) = thread.execute { linkHandlers.add(handler) }

    /** Milliseconds until the phase ends. */
    fun leftMs(): Long = maxOf(0, (deadline - System.nanoTime()) / 1_000_000)

    /** Answers the open question. It arrives once, also when the connection breaks meanwhile. */
    fun answer(choice: Int) = thread.execute {
        val now = game
        if (now.phase == Phase.QUESTION && now.choice == null) {
            game = now.copy(choice = choice)
            unsure = Unsure(now.id, now.round, choice)
            sendAnswer()
            changed()
        }
    }

    /** Joins a queue, after `end` or `cancelled`. Without a name it is the previous one. */
    fun join(queue: String? = null, fields: JoinFields = JoinFields()) = thread.execute {
        this.queue = queue ?: this.queue
        joinFields = fields
        joined = false
        wanted = true
        val join = mapOf("type" to "join", "queue" to this.queue) + fields.fields().minus("queue")
        if (!sendNow(join)) reconnect(0)
    }

    /** Leaves the queue, or the game for good. */
    fun leave() = send(LeaveFields())

    /** A reaction. The opponents see it. */
    fun emoji(message: EmojiFields) = send(message)

    /** The player wants to play the last game again with the same players, or does not. */
    fun rematch(message: RematchFields) = send(message)

    /**
     * The player finds a question wrong. It is one of the game they are in, or of the last one, and
     * its answer was revealed. Each player counts once.
     */
    fun flag(message: FlagFields) = send(message)

    /** The host of a room begins a game of all who are connected. */
    fun begin(message: BeginFields) = send(message)

    /** The host sends a player away from the room, and out of its game. They can't come back. */
    fun kick(message: KickFields) = send(message)

    /** The host lets no new player into the room, or lets them in again. */
    fun lock(message: LockFields) = send(message)

    /** The host makes another player the host. */
    fun pass(message: PassFields) = send(message)

    /** Sends a message. Without a connection it is dropped; `update` then shows the true state. */
    fun send(message: ClientMessage) = thread.execute { sendNow(message.fields()) }

    /** Closes the connection. The seat in a game is kept for a while; `join` returns to it. */
    fun close() = thread.execute { end(CloseReason.DONE) }

    /** Call it when the app comes back from the background, or the network does. */
    fun wake() = thread.execute {
        if (wanted && isOpen) probe() else if (wanted) reconnect(0)
    }

    // -- connection

    private fun later(ms: Long, work: () -> Unit): ScheduledFuture<*> =
        thread.schedule(work, ms, TimeUnit.MILLISECONDS)

    private fun connect() {
        timer?.cancel(false)
        drop()
        val token = trivia.token ?: return end(CloseReason.SIGNED_OUT)
        val join = if (joined) emptyMap() else joinFields.fields().minus(listOf("type", "queue"))
        val fields = room?.let { mapOf("code" to it.code) } ?: join
        val app = trivia.app?.let { mapOf("app" to it.name, "version" to it.version) }.orEmpty()
        val url = trivia.url.replaceFirst("http", "ws") + "/game/" + part(queue) + queryString(fields + app)
        val made = WebSocket(
            url,
            listOf(PROTOCOL, "bearer.$token"),
            opened = { one -> thread.execute { opened(one) } },
            received = { one, text -> thread.execute { if (one === socket) receive(text) } },
            closed = { one, close -> thread.execute { lost(one, close, token) } },
        )
        socket = made
        setLink(Link.Connecting)
        made.start()
    }

    private fun opened(one: WebSocket) {
        if (one !== socket) return
        isOpen = true
        checking = false
        setLink(Link.Online)
        listen()
    }

    private fun drop() {
        alive?.cancel(false)
        socket?.drop()
        socket = null
        isOpen = false
    }

    private fun lost(one: WebSocket, close: Close, token: String? = null) {
        if (one !== socket) return
        drop()
        val code = close.code
        val final = FINAL[code]
        if (final == CloseReason.SIGNED_OUT && token == trivia.token) trivia.setToken(null)
        if (final != null) return end(final, close.reason)
        if (!wanted) return end(CloseReason.DONE)
        failures += 1
        if (code == RESTART && failures == 1) return reconnect(0)
        val grown = minOf(MAX_PAUSE_MS, 250L shl minOf(failures, 10))
        val pause = if (code in BUSY) maxOf(grown, BUSY_PAUSE_MS) else grown
        reconnect((pause * (0.5 + Math.random() / 2)).toLong()) // so that not all phones come at once
    }

    private fun reconnect(pauseMs: Long) {
        timer?.cancel(false)
        if (pauseMs == 0L) return connect()
        setLink(Link.Waiting(pauseMs))
        timer = later(pauseMs) { connect() }
    }

    private fun end(reason: CloseReason, detail: String = "") {
        timer?.cancel(false)
        drop()
        wanted = false
        setLink(Link.Closed(reason, detail))
    }

    /** Asks whether the connection is alive when nothing was heard for a while. */
    private fun listen() {
        alive?.cancel(false)
        alive = later(SILENCE_MS) { probe() }
    }

    private fun probe() {
        val one = socket ?: return
        sendNow(mapOf("type" to "ping"))
        alive?.cancel(false)
        alive = later(REPLY_MS) { lost(one, Close(0)) }
    }

    private fun sendNow(fields: Map<String, Any?>): Boolean = isOpen && socket?.send(Json.write(fields)) == true

    private fun setLink(link: Link) {
        this.link = link
        tell(linkHandlers, link)
        changed()
    }

    private fun changed() = tell(changeHandlers, game)

    private fun <T> tell(handlers: List<(T) -> Unit>, event: T) {
        val all = handlers.toList()
        if (callbacks == null) all.forEach { it(event) } else callbacks.execute { all.forEach { it(event) } }
    }

    // -- messages

    private fun receive(text: String) {
        listen()
        failures = 0
        joined = true
        val json = try { Json.parse(text) } catch (_: TriviaException) { return }
        val message = ServerMessage.from(json) ?: return
        val number = json["seq"].orNull { it.int() }
        if (number != null && isStale(message, json["game"].text(), number)) return
        if (message is ErrorMessage && repairs(message, json["id"].value)) return
        apply(message)
        tell(messageHandlers, message)
        changed()
    }

    /** Tells whether a message brings nothing new. After a gap it asks for the whole state. */
    private fun isStale(message: ServerMessage, id: String, number: Int): Boolean {
        val known = if (id == game.id) seq else 0
        if (message is UpdateMessage) {
            checking = false
            if (number < known) return true
        } else {
            if (number <= known) return true
            if (number > known + 1) check()
        }
        seq = number
        if (id != game.id) game = Game(id = id)
        return false
    }

    private fun check() {
        if (!checking) checking = sendNow(mapOf("type" to "check"))
    }

    private fun sendAnswer() {
        val answer = unsure ?: return
        sent += 1
        val fields = mapOf("type" to "answer", "game" to answer.game, "round" to answer.round, "choice" to answer.choice)
        sendNow(fields + ("id" to sent))
    }

    private fun apply(message: ServerMessage) {
        when (message) {
            is QueuedMessage -> {
                room = null
                enter(Game(Phase.QUEUED), message.timeoutMs)
            }
            is RoomMessage -> {
                room = message
                wanted = true
            }
            is CancelledMessage -> {
                room = null
                game = game.copy(phase = Phase.CANCELLED, reason = message.reason)
                wanted = false
            }
            is StartMessage -> {
                val scores = message.players.associate { it.username to 0 }
                val begun = game.copy(phase = Phase.START, rounds = message.rounds, players = message.players, scores = scores)
                enter(begun, message.startsMs)
            }
            is QuestionMessage -> {
                unsure = null
                val view = QuestionView(message.round, message.text, message.choices, message.category, message.difficulty)
                val opened = game.copy(phase = Phase.QUESTION, round = message.round, question = view, choice = null)
                enter(opened.copy(correct = null, answered = emptyList(), answers = emptyMap()), message.answerMs)
            }
            is AnsweredMessage ->
                if (message.round == game.round) game = game.copy(answered = game.answered + message.player)
            is RevealMessage -> {
                unsure = null
                val answers = message.answers.mapValues { (_, one) -> Answer(one.choice, one.points, one.ms.toLong()) }
                val revealed = game.copy(phase = Phase.REVEAL, correct = message.correct, answers = answers)
                enter(revealed.copy(scores = message.scores), message.revealMs)
            }
            is UpdateMessage -> applyUpdate(message)
            is UserExitMessage -> game = game.copy(away = game.away + message.player)
            is UserReturnMessage -> game = game.copy(away = game.away - message.player)
            is EndMessage -> {
                unsure = null
                wanted = room != null
                game = game.copy(phase = Phase.END, reason = message.reason, end = message)
            }
            else -> Unit
        }
    }

    private fun enter(game: Game, ms: Number) {
        this.game = game
        deadline = System.nanoTime() + ms.toLong() * 1_000_000
    }

    private fun applyUpdate(update: UpdateMessage) {
        val shown = update.question
        val view = shown?.let { QuestionView(it.round ?: 0, it.text ?: "", it.choices ?: emptyList(), it.category ?: "", it.difficulty ?: "") }
        val now = Game(
            phase = Phase.valueOf(update.phase.uppercase()),
            id = update.game,
            players = update.players,
            rounds = update.rounds,
            round = update.round,
            question = view,
            choice = update.choice,
            correct = update.correct,
            answered = update.answered ?: emptyList(),
            answers = answersOf(Json(update.answers)),
            scores = update.scores,
            away = update.players.map { it.username }.toSet() - update.connected.toSet(),
        )
        enter(now, update.leftMs)
        wanted = true
        val lost = unsure
        val open = now.phase == Phase.QUESTION && now.choice == null
        if (!open || lost?.game != now.id || lost.round != now.round) {
            unsure = null
            return
        }
        game = now.copy(choice = lost.choice) // it was lost on the way: the server knows of none
        sendAnswer()
    }

    private fun answersOf(json: Json): Map<String, Answer> = json.orNull { all ->
        all.map { Answer(it["choice"].int(), it["points"].int(), it["ms"].long()) }
    } ?: emptyMap()

    /** Handles an error about the answer. Returns whether the app need not know. */
    private fun repairs(error: ErrorMessage, id: Any?): Boolean {
        val answer = unsure ?: return false
        if ((id as? Number)?.toInt() != sent) return false
        if (error.code == "already_answered") return true // it had arrived before
        if (error.code == "unavailable") {
            later(RETRY_ANSWER_MS) { if (unsure === answer) sendAnswer() }
            return true
        }
        unsure = null
        game = game.copy(choice = null)
        return false
    }
}
