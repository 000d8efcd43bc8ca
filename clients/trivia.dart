// A client for Trivia, made from schema.yaml by `python trivia.py client dart`.
// Do not edit it: change schema.yaml and make it again.
//
// It needs nothing but the libraries of Dart 3, as Flutter has them on phones and desktops.
//
//   final trivia = Trivia('https://quiz.example.org', token: kept, onToken: keep);
//   if (trivia.token == null) await trivia.login(Login(login: name, password: password));
//   final play = trivia.play('random');
//   play.changes.listen((game) => show(game));
//   play.messages.listen((message) { if (message is EndMessage) celebrate(message.ranking); });
//   play.answer(0);

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:math';

/// The version of the protocol. The server refuses a client of another version.
const triviaProtocol = 'trivia.v1';

// ---- types ---------------------------------------------------------------------------------------

class NewUser {
  const NewUser({required this.username, required this.email, required this.password, this.avatar, this.zone});

  NewUser.from(Map<String, dynamic> json)
      : username = json['username'] as String,
        email = json['email'] as String,
        password = json['password'] as String,
        avatar = _orNull(json['avatar'], (it) => it as String),
        zone = _orNull(json['zone'], (it) => it as String);

  /// The name that other players see.
  final String username;

  /// An alternative to the username at sign-in, and where a forgotten password is recovered.
  final String email;

  /// The server stores only its argon2id hash.
  final String password;

  /// The http or https address of a picture. Default: "".
  final String? avatar;

  /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
  final String? zone;

  Map<String, dynamic> toJson() => _fields({'username': username, 'email': email, 'password': password, 'avatar': avatar, 'zone': zone});
}

class Guest {
  const Guest({required this.secret});

  Guest.from(Map<String, dynamic> json)
      : secret = json['secret'] as String;

  /// A random text that the device makes once and keeps as a password.
  final String secret;

  Map<String, dynamic> toJson() => _fields({'secret': secret});
}

class Recovery {
  const Recovery({required this.login});

  Recovery.from(Map<String, dynamic> json)
      : login = json['login'] as String;

  final String login;

  Map<String, dynamic> toJson() => _fields({'login': login});
}

class Reset {
  const Reset({required this.login, required this.code, required this.password});

  Reset.from(Map<String, dynamic> json)
      : login = json['login'] as String,
        code = json['code'] as String,
        password = json['password'] as String;

  final String login;

  /// The six digits of the mail.
  final String code;

  /// The server stores only its argon2id hash.
  final String password;

  Map<String, dynamic> toJson() => _fields({'login': login, 'code': code, 'password': password});
}

class Confirmation {
  const Confirmation({required this.code});

  Confirmation.from(Map<String, dynamic> json)
      : code = json['code'] as String;

  /// The six digits of the mail.
  final String code;

  Map<String, dynamic> toJson() => _fields({'code': code});
}

class ConfirmationMail {
  const ConfirmationMail({this.email});

  ConfirmationMail.from(Map<String, dynamic> json)
      : email = _orNull(json['email'], (it) => it as String);

  /// An alternative to the username at sign-in, and where a forgotten password is recovered.
  final String? email;

  Map<String, dynamic> toJson() => _fields({'email': email});
}

class Upgrade {
  const Upgrade({this.username, required this.email, required this.password, this.avatar, this.zone});

  Upgrade.from(Map<String, dynamic> json)
      : username = _orNull(json['username'], (it) => it as String),
        email = json['email'] as String,
        password = json['password'] as String,
        avatar = _orNull(json['avatar'], (it) => it as String),
        zone = _orNull(json['zone'], (it) => it as String);

  /// The name that other players see.
  final String? username;

  /// An alternative to the username at sign-in, and where a forgotten password is recovered.
  final String email;

  /// The server stores only its argon2id hash.
  final String password;

  /// The http or https address of a picture. Default: "".
  final String? avatar;

  /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
  final String? zone;

  Map<String, dynamic> toJson() => _fields({'username': username, 'email': email, 'password': password, 'avatar': avatar, 'zone': zone});
}

class UserChanges {
  const UserChanges({this.username, this.email, this.avatar, this.zone, this.password});

  UserChanges.from(Map<String, dynamic> json)
      : username = _orNull(json['username'], (it) => it as String),
        email = _orNull(json['email'], (it) => it as String),
        avatar = _orNull(json['avatar'], (it) => it as String),
        zone = _orNull(json['zone'], (it) => it as String),
        password = _orNull(json['password'], (it) => it as String);

  /// The name that other players see.
  final String? username;

  /// An alternative to the username at sign-in, and where a forgotten password is recovered.
  final String? email;

  /// The http or https address of a picture. Default: "".
  final String? avatar;

  /// The time zone of the player's phone. Their `streak` counts days by it. Default: "UTC".
  final String? zone;

  /// The present password. A new username or email takes it.
  final String? password;

  Map<String, dynamic> toJson() => _fields({'username': username, 'email': email, 'avatar': avatar, 'zone': zone, 'password': password});
}

class Login {
  const Login({this.login, this.username, this.email, required this.password});

  Login.from(Map<String, dynamic> json)
      : login = _orNull(json['login'], (it) => it as String),
        username = _orNull(json['username'], (it) => it as String),
        email = _orNull(json['email'], (it) => it as String),
        password = json['password'] as String;

  /// A username or email.
  final String? login;

  /// Can be given instead of login.
  final String? username;

  /// Can be given instead of login.
  final String? email;

  final String password;

  Map<String, dynamic> toJson() => _fields({'login': login, 'username': username, 'email': email, 'password': password});
}

class PasswordChange {
  const PasswordChange({required this.password, required this.newPassword});

  PasswordChange.from(Map<String, dynamic> json)
      : password = json['password'] as String,
        newPassword = json['new_password'] as String;

  /// The present password.
  final String password;

  /// The server stores only its argon2id hash.
  final String newPassword;

  Map<String, dynamic> toJson() => _fields({'password': password, 'new_password': newPassword});
}

class PasswordConfirmation {
  const PasswordConfirmation({this.password});

  PasswordConfirmation.from(Map<String, dynamic> json)
      : password = _orNull(json['password'], (it) => it as String);

  /// Needed, unless the account has none: that of a guest, or of an identity.
  final String? password;

  Map<String, dynamic> toJson() => _fields({'password': password});
}

class Report {
  const Report({this.player, this.question, required this.reason, this.game, this.text});

  Report.from(Map<String, dynamic> json)
      : player = _orNull(json['player'], (it) => it as String),
        question = _orNull(json['question'], (it) => it as String),
        reason = json['reason'] as String,
        game = _orNull(json['game'], (it) => it as String),
        text = _orNull(json['text'], (it) => it as String);

  /// A username.
  final String? player;

  /// Instead of a player: the text of a question as it was shown, or its id.
  final String? question;

  /// Of a player: name, picture, message, cheating; of a question: wrong, ambiguous, outdated,
  /// offensive.
  final String reason;

  /// A game of the caller, running or not; the operator sees its rounds.
  final String? game;

  /// A note to the operator.
  final String? text;

  Map<String, dynamic> toJson() => _fields({'player': player, 'question': question, 'reason': reason, 'game': game, 'text': text});
}

class ChallengeQueue {
  const ChallengeQueue({required this.queue});

  ChallengeQueue.from(Map<String, dynamic> json)
      : queue = json['queue'] as String;

  /// A queue with `match: challenge`.
  final String queue;

  Map<String, dynamic> toJson() => _fields({'queue': queue});
}

class User {
  const User({required this.username, this.email, required this.avatar, required this.wins, required this.games, required this.rating, required this.streak, required this.dailyPoints, required this.zone, required this.createdAt, required this.emailConfirmed, this.guest, this.provisional});

  User.from(Map<String, dynamic> json)
      : username = json['username'] as String,
        email = _orNull(json['email'], (it) => it as String),
        avatar = json['avatar'] as String,
        wins = json['wins'] as int,
        games = json['games'] as int,
        rating = json['rating'] as int,
        streak = json['streak'] as int,
        dailyPoints = json['daily_points'] as int,
        zone = json['zone'] as String,
        createdAt = json['created_at'] as int,
        emailConfirmed = json['email_confirmed'] as bool,
        guest = json['guest'],
        provisional = json['provisional'];

  /// The name that other players see.
  final String username;

  final String? email;

  /// The http or https address of a picture.
  final String avatar;

  /// Games in which the player alone was first.
  final int wins;

  /// Games that ended and count.
  final int games;

  /// Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number.
  final int rating;

  /// Days in a row with a daily game.
  final int streak;

  /// Points in daily games.
  final int dailyPoints;

  /// The time zone of the player's phone. Their `streak` counts days by it.
  final String zone;

  /// Seconds since 1970.
  final int createdAt;

  final bool emailConfirmed;

  /// Present while the user is a guest.
  final Object? guest;

  /// Present while the rating is uncertain.
  final Object? provisional;

  Map<String, dynamic> toJson() => _fields({'username': username, 'email': email, 'avatar': avatar, 'wins': wins, 'games': games, 'rating': rating, 'streak': streak, 'daily_points': dailyPoints, 'zone': zone, 'created_at': createdAt, 'email_confirmed': emailConfirmed, 'guest': guest, 'provisional': provisional});
}

class Player {
  const Player({required this.username, required this.avatar, required this.wins, required this.games, required this.rating, required this.streak, required this.dailyPoints, this.guest, this.provisional, this.bot});

  Player.from(Map<String, dynamic> json)
      : username = json['username'] as String,
        avatar = json['avatar'] as String,
        wins = json['wins'] as int,
        games = json['games'] as int,
        rating = json['rating'] as int,
        streak = json['streak'] as int,
        dailyPoints = json['daily_points'] as int,
        guest = json['guest'],
        provisional = json['provisional'],
        bot = json['bot'];

  /// The name that other players see.
  final String username;

  /// The http or https address of a picture.
  final String avatar;

  /// Games in which the player alone was first.
  final int wins;

  /// Games that ended and count.
  final int games;

  /// Skill, estimated from rated games with the Plackett-Luce model. Shown as a whole number.
  final int rating;

  /// Days in a row with a daily game.
  final int streak;

  /// Points in daily games.
  final int dailyPoints;

  /// Present while the user is a guest.
  final Object? guest;

  /// Present while the rating is uncertain.
  final Object? provisional;

  /// Present if the player is a bot.
  final Object? bot;

  Map<String, dynamic> toJson() => _fields({'username': username, 'avatar': avatar, 'wins': wins, 'games': games, 'rating': rating, 'streak': streak, 'daily_points': dailyPoints, 'guest': guest, 'provisional': provisional, 'bot': bot});
}

class Session {
  const Session({required this.token, required this.expiresAt, required this.user});

  Session.from(Map<String, dynamic> json)
      : token = json['token'] as String,
        expiresAt = json['expires_at'] as int,
        user = User.from(json['user'] as Map<String, dynamic>);

  final String token;

  /// Seconds since 1970; each day of use moves it forward.
  final int expiresAt;

  final User user;

  Map<String, dynamic> toJson() => _fields({'token': token, 'expires_at': expiresAt, 'user': user});
}

class Upgraded {
  const Upgraded({required this.user});

  Upgraded.from(Map<String, dynamic> json)
      : user = User.from(json['user'] as Map<String, dynamic>);

  final User user;

  Map<String, dynamic> toJson() => _fields({'user': user});
}

class Problem {
  const Problem({required this.type, required this.title, required this.status, required this.detail, required this.code, this.errors, this.merge, this.guest, this.account, this.untilMs, this.reason, this.store});

  Problem.from(Map<String, dynamic> json)
      : type = json['type'] as String,
        title = json['title'] as String,
        status = json['status'] as int,
        detail = json['detail'] as String,
        code = json['code'] as String,
        errors = _orNull(json['errors'], (it) => _map(it, (it) => _list(it, (it) => it as String))),
        merge = _orNull(json['merge'], (it) => it as String),
        guest = _orNull(json['guest'], (it) => Player.from(it as Map<String, dynamic>)),
        account = _orNull(json['account'], (it) => Player.from(it as Map<String, dynamic>)),
        untilMs = _orNull(json['until_ms'], (it) => it as int),
        reason = _orNull(json['reason'], (it) => it as String),
        store = _orNull(json['store'], (it) => it as String);

  final String type;

  final String title;

  final int status;

  final String detail;

  /// Stable; for programs. A later version may add codes.
  final String code;

  /// What is wrong, by field.
  final Map<String, List<String>>? errors;

  /// A token for POST /auth/merge.
  final String? merge;

  final Player? guest;

  final Player? account;

  /// End of a ban, in ms since 1970; 0: it has none.
  final int? untilMs;

  /// Of a ban.
  final String? reason;

  /// Where a new version of the app is.
  final String? store;

  Map<String, dynamic> toJson() => _fields({'type': type, 'title': title, 'status': status, 'detail': detail, 'code': code, 'errors': errors, 'merge': merge, 'guest': guest, 'account': account, 'until_ms': untilMs, 'reason': reason, 'store': store});
}

class GameSummary {
  const GameSummary({required this.id, required this.queue, required this.endedMs, required this.reason, required this.ranking});

  GameSummary.from(Map<String, dynamic> json)
      : id = json['id'] as String,
        queue = json['queue'] as String,
        endedMs = json['ended_ms'] as int,
        reason = json['reason'] as String,
        ranking = _list(json['ranking'], (it) => GameSummaryRanking.from(it as Map<String, dynamic>));

  final String id;

  final String queue;

  /// Milliseconds since 1970.
  final int endedMs;

  final String reason;

  final List<GameSummaryRanking> ranking;

  Map<String, dynamic> toJson() => _fields({'id': id, 'queue': queue, 'ended_ms': endedMs, 'reason': reason, 'ranking': ranking});
}

class GameSummaryRanking {
  const GameSummaryRanking({required this.player, required this.score, required this.rank, this.rating, this.ratingChange, this.provisional, this.bot, this.counts});

  GameSummaryRanking.from(Map<String, dynamic> json)
      : player = json['player'] as String,
        score = json['score'] as int,
        rank = json['rank'] as int,
        rating = _orNull(json['rating'], (it) => it as int),
        ratingChange = _orNull(json['rating_change'], (it) => it as int),
        provisional = json['provisional'],
        bot = json['bot'],
        counts = _orNull(json['counts'], (it) => it as bool);

  final String player;

  final int score;

  final int rank;

  final int? rating;

  final int? ratingChange;

  /// Present while the rating is uncertain.
  final Object? provisional;

  /// Present if it is a bot.
  final Object? bot;

  final bool? counts;

  Map<String, dynamic> toJson() => _fields({'player': player, 'score': score, 'rank': rank, 'rating': rating, 'rating_change': ratingChange, 'provisional': provisional, 'bot': bot, 'counts': counts});
}

class GameRecord {
  const GameRecord({required this.id, required this.queue, required this.endedMs, required this.reason, required this.ranking, required this.rounds});

  GameRecord.from(Map<String, dynamic> json)
      : id = json['id'] as String,
        queue = json['queue'] as String,
        endedMs = json['ended_ms'] as int,
        reason = json['reason'] as String,
        ranking = _list(json['ranking'], (it) => GameRecordRanking.from(it as Map<String, dynamic>)),
        rounds = _list(json['rounds'], (it) => GameRecordRounds.from(it as Map<String, dynamic>));

  final String id;

  final String queue;

  /// Milliseconds since 1970.
  final int endedMs;

  final String reason;

  final List<GameRecordRanking> ranking;

  final List<GameRecordRounds> rounds;

  Map<String, dynamic> toJson() => _fields({'id': id, 'queue': queue, 'ended_ms': endedMs, 'reason': reason, 'ranking': ranking, 'rounds': rounds});
}

class GameRecordRanking {
  const GameRecordRanking({required this.player, required this.score, required this.rank, this.rating, this.ratingChange, this.provisional, this.bot, this.counts});

  GameRecordRanking.from(Map<String, dynamic> json)
      : player = json['player'] as String,
        score = json['score'] as int,
        rank = json['rank'] as int,
        rating = _orNull(json['rating'], (it) => it as int),
        ratingChange = _orNull(json['rating_change'], (it) => it as int),
        provisional = json['provisional'],
        bot = json['bot'],
        counts = _orNull(json['counts'], (it) => it as bool);

  final String player;

  final int score;

  final int rank;

  final int? rating;

  final int? ratingChange;

  /// Present while the rating is uncertain.
  final Object? provisional;

  /// Present if it is a bot.
  final Object? bot;

  final bool? counts;

  Map<String, dynamic> toJson() => _fields({'player': player, 'score': score, 'rank': rank, 'rating': rating, 'rating_change': ratingChange, 'provisional': provisional, 'bot': bot, 'counts': counts});
}

class GameRecordRounds {
  const GameRecordRounds({required this.text, required this.choices, required this.category, required this.difficulty, required this.correct, required this.answers});

  GameRecordRounds.from(Map<String, dynamic> json)
      : text = json['text'] as String,
        choices = _list(json['choices'], (it) => it as String),
        category = json['category'] as String,
        difficulty = json['difficulty'] as String,
        correct = json['correct'] as int,
        answers = _map(json['answers'], (it) => GameRecordRoundsAnswers.from(it as Map<String, dynamic>));

  final String text;

  final List<String> choices;

  final String category;

  final String difficulty;

  final int correct;

  final Map<String, GameRecordRoundsAnswers> answers;

  Map<String, dynamic> toJson() => _fields({'text': text, 'choices': choices, 'category': category, 'difficulty': difficulty, 'correct': correct, 'answers': answers});
}

class GameRecordRoundsAnswers {
  const GameRecordRoundsAnswers({required this.choice, required this.ms, required this.points});

  GameRecordRoundsAnswers.from(Map<String, dynamic> json)
      : choice = json['choice'] as int,
        ms = json['ms'] as int,
        points = json['points'] as int;

  final int choice;

  final int ms;

  final int points;

  Map<String, dynamic> toJson() => _fields({'choice': choice, 'ms': ms, 'points': points});
}

class GameList {
  const GameList({required this.games, this.cursor});

  GameList.from(Map<String, dynamic> json)
      : games = _list(json['games'], (it) => GameSummary.from(it as Map<String, dynamic>)),
        cursor = _orNull(json['cursor'], (it) => it as String);

  final List<GameSummary> games;

  final String? cursor;

  Map<String, dynamic> toJson() => _fields({'games': games, 'cursor': cursor});
}

class Leaderboard {
  const Leaderboard({required this.leaderboard, this.period, required this.total, required this.entries});

  Leaderboard.from(Map<String, dynamic> json)
      : leaderboard = json['leaderboard'] as String,
        period = _orNull(json['period'], (it) => it as String),
        total = json['total'] as int,
        entries = _list(json['entries'], (it) => LeaderboardEntries.from(it as Map<String, dynamic>));

  final String leaderboard;

  final String? period;

  final int total;

  final List<LeaderboardEntries> entries;

  Map<String, dynamic> toJson() => _fields({'leaderboard': leaderboard, 'period': period, 'total': total, 'entries': entries});
}

class LeaderboardEntries {
  const LeaderboardEntries({required this.rank, required this.username, required this.value, this.provisional});

  LeaderboardEntries.from(Map<String, dynamic> json)
      : rank = json['rank'] as int,
        username = json['username'] as String,
        value = (json['value'] as num).toDouble(),
        provisional = json['provisional'];

  final int rank;

  final String username;

  final double value;

  /// Present while the rating is uncertain.
  final Object? provisional;

  Map<String, dynamic> toJson() => _fields({'rank': rank, 'username': username, 'value': value, 'provisional': provisional});
}

class QueueList {
  const QueueList({required this.queues});

  QueueList.from(Map<String, dynamic> json)
      : queues = _list(json['queues'], (it) => QueueListQueues.from(it as Map<String, dynamic>));

  final List<QueueListQueues> queues;

  Map<String, dynamic> toJson() => _fields({'queues': queues});
}

class QueueListQueues {
  const QueueListQueues({this.description, required this.players, this.match, this.days, this.lateJoin, this.rematchSeconds, this.draw, this.attempts, this.bots, this.window, this.widen, this.fillSeconds, this.waitSeconds, this.rounds, this.startSeconds, this.answerSeconds, this.revealSeconds, this.totalSeconds, this.lives, this.seatSeconds, this.rated, this.scoring, this.onExit, this.categories, this.difficulties, required this.name, required this.waiting, required this.playing});

  QueueListQueues.from(Map<String, dynamic> json)
      : description = _orNull(json['description'], (it) => it as String),
        players = QueueListQueuesPlayers.from(json['players'] as Map<String, dynamic>),
        match = _orNull(json['match'], (it) => it as String),
        days = _orNull(json['days'], (it) => it as int),
        lateJoin = _orNull(json['late_join'], (it) => it as bool),
        rematchSeconds = _orNull(json['rematch_seconds'], (it) => (it as num).toDouble()),
        draw = _orNull(json['draw'], (it) => it as String),
        attempts = _orNull(json['attempts'], (it) => it as int),
        bots = _orNull(json['bots'], (it) => QueueListQueuesBots.from(it as Map<String, dynamic>)),
        window = _orNull(json['window'], (it) => (it as num).toDouble()),
        widen = _orNull(json['widen'], (it) => (it as num).toDouble()),
        fillSeconds = _orNull(json['fill_seconds'], (it) => (it as num).toDouble()),
        waitSeconds = _orNull(json['wait_seconds'], (it) => (it as num).toDouble()),
        rounds = _orNull(json['rounds'], (it) => it as int),
        startSeconds = _orNull(json['start_seconds'], (it) => (it as num).toDouble()),
        answerSeconds = _orNull(json['answer_seconds'], (it) => (it as num).toDouble()),
        revealSeconds = _orNull(json['reveal_seconds'], (it) => (it as num).toDouble()),
        totalSeconds = _orNull(json['total_seconds'], (it) => (it as num).toDouble()),
        lives = _orNull(json['lives'], (it) => it as int),
        seatSeconds = _orNull(json['seat_seconds'], (it) => (it as num).toDouble()),
        rated = _orNull(json['rated'], (it) => it as bool),
        scoring = _orNull(json['scoring'], (it) => QueueListQueuesScoring.from(it as Map<String, dynamic>)),
        onExit = _orNull(json['on_exit'], (it) => it as String),
        categories = _orNull(json['categories'], (it) => _list(it, (it) => it as String)),
        difficulties = _orNull(json['difficulties'], (it) => _list(it, (it) => it as String)),
        name = json['name'] as String,
        waiting = json['waiting'] as int,
        playing = json['playing'] as int;

  final String? description;

  final QueueListQueuesPlayers players;

  final String? match;

  final int? days;

  final bool? lateJoin;

  final double? rematchSeconds;

  final String? draw;

  final int? attempts;

  final QueueListQueuesBots? bots;

  final double? window;

  final double? widen;

  final double? fillSeconds;

  final double? waitSeconds;

  final int? rounds;

  final double? startSeconds;

  final double? answerSeconds;

  final double? revealSeconds;

  final double? totalSeconds;

  final int? lives;

  final double? seatSeconds;

  final bool? rated;

  final QueueListQueuesScoring? scoring;

  final String? onExit;

  final List<String>? categories;

  final List<String>? difficulties;

  final String name;

  final int waiting;

  final int playing;

  Map<String, dynamic> toJson() => _fields({'description': description, 'players': players, 'match': match, 'days': days, 'late_join': lateJoin, 'rematch_seconds': rematchSeconds, 'draw': draw, 'attempts': attempts, 'bots': bots, 'window': window, 'widen': widen, 'fill_seconds': fillSeconds, 'wait_seconds': waitSeconds, 'rounds': rounds, 'start_seconds': startSeconds, 'answer_seconds': answerSeconds, 'reveal_seconds': revealSeconds, 'total_seconds': totalSeconds, 'lives': lives, 'seat_seconds': seatSeconds, 'rated': rated, 'scoring': scoring, 'on_exit': onExit, 'categories': categories, 'difficulties': difficulties, 'name': name, 'waiting': waiting, 'playing': playing});
}

class QueueListQueuesPlayers {
  const QueueListQueuesPlayers({required this.min, required this.max});

  QueueListQueuesPlayers.from(Map<String, dynamic> json)
      : min = json['min'] as int,
        max = json['max'] as int;

  final int min;

  final int max;

  Map<String, dynamic> toJson() => _fields({'min': min, 'max': max});
}

class QueueListQueuesBots {
  const QueueListQueuesBots({required this.afterSeconds, this.skill});

  QueueListQueuesBots.from(Map<String, dynamic> json)
      : afterSeconds = (json['after_seconds'] as num).toDouble(),
        skill = json['skill'];

  final double afterSeconds;

  final Object? skill;

  Map<String, dynamic> toJson() => _fields({'after_seconds': afterSeconds, 'skill': skill});
}

class QueueListQueuesScoring {
  const QueueListQueuesScoring({required this.correct, required this.speed});

  QueueListQueuesScoring.from(Map<String, dynamic> json)
      : correct = json['correct'] as int,
        speed = json['speed'] as int;

  final int correct;

  final int speed;

  Map<String, dynamic> toJson() => _fields({'correct': correct, 'speed': speed});
}

class Rules {
  const Rules({this.players, this.match, this.days, this.lateJoin, this.rematchSeconds, this.draw, this.attempts, this.bots, this.window, this.widen, this.fillSeconds, this.waitSeconds, this.rounds, this.startSeconds, this.answerSeconds, this.revealSeconds, this.totalSeconds, this.lives, this.seatSeconds, this.rated, this.scoring, this.onExit, this.categories, this.difficulties});

  Rules.from(Map<String, dynamic> json)
      : players = _orNull(json['players'], (it) => RulesPlayers.from(it as Map<String, dynamic>)),
        match = _orNull(json['match'], (it) => it as String),
        days = _orNull(json['days'], (it) => it as int),
        lateJoin = _orNull(json['late_join'], (it) => it as bool),
        rematchSeconds = _orNull(json['rematch_seconds'], (it) => (it as num).toDouble()),
        draw = _orNull(json['draw'], (it) => it as String),
        attempts = _orNull(json['attempts'], (it) => it as int),
        bots = _orNull(json['bots'], (it) => RulesBots.from(it as Map<String, dynamic>)),
        window = _orNull(json['window'], (it) => (it as num).toDouble()),
        widen = _orNull(json['widen'], (it) => (it as num).toDouble()),
        fillSeconds = _orNull(json['fill_seconds'], (it) => (it as num).toDouble()),
        waitSeconds = _orNull(json['wait_seconds'], (it) => (it as num).toDouble()),
        rounds = _orNull(json['rounds'], (it) => it as int),
        startSeconds = _orNull(json['start_seconds'], (it) => (it as num).toDouble()),
        answerSeconds = _orNull(json['answer_seconds'], (it) => (it as num).toDouble()),
        revealSeconds = _orNull(json['reveal_seconds'], (it) => (it as num).toDouble()),
        totalSeconds = _orNull(json['total_seconds'], (it) => (it as num).toDouble()),
        lives = _orNull(json['lives'], (it) => it as int),
        seatSeconds = _orNull(json['seat_seconds'], (it) => (it as num).toDouble()),
        rated = _orNull(json['rated'], (it) => it as bool),
        scoring = _orNull(json['scoring'], (it) => RulesScoring.from(it as Map<String, dynamic>)),
        onExit = _orNull(json['on_exit'], (it) => it as String),
        categories = _orNull(json['categories'], (it) => _list(it, (it) => it as String)),
        difficulties = _orNull(json['difficulties'], (it) => _list(it, (it) => it as String));

  final RulesPlayers? players;

  final String? match;

  final int? days;

  final bool? lateJoin;

  final double? rematchSeconds;

  final String? draw;

  final int? attempts;

  final RulesBots? bots;

  final double? window;

  final double? widen;

  final double? fillSeconds;

  final double? waitSeconds;

  final int? rounds;

  final double? startSeconds;

  final double? answerSeconds;

  final double? revealSeconds;

  final double? totalSeconds;

  final int? lives;

  final double? seatSeconds;

  final bool? rated;

  final RulesScoring? scoring;

  final String? onExit;

  final List<String>? categories;

  final List<String>? difficulties;

  Map<String, dynamic> toJson() => _fields({'players': players, 'match': match, 'days': days, 'late_join': lateJoin, 'rematch_seconds': rematchSeconds, 'draw': draw, 'attempts': attempts, 'bots': bots, 'window': window, 'widen': widen, 'fill_seconds': fillSeconds, 'wait_seconds': waitSeconds, 'rounds': rounds, 'start_seconds': startSeconds, 'answer_seconds': answerSeconds, 'reveal_seconds': revealSeconds, 'total_seconds': totalSeconds, 'lives': lives, 'seat_seconds': seatSeconds, 'rated': rated, 'scoring': scoring, 'on_exit': onExit, 'categories': categories, 'difficulties': difficulties});
}

class RulesPlayers {
  const RulesPlayers({required this.min, required this.max});

  RulesPlayers.from(Map<String, dynamic> json)
      : min = json['min'] as int,
        max = json['max'] as int;

  final int min;

  final int max;

  Map<String, dynamic> toJson() => _fields({'min': min, 'max': max});
}

class RulesBots {
  const RulesBots({required this.afterSeconds, this.skill});

  RulesBots.from(Map<String, dynamic> json)
      : afterSeconds = (json['after_seconds'] as num).toDouble(),
        skill = json['skill'];

  final double afterSeconds;

  final Object? skill;

  Map<String, dynamic> toJson() => _fields({'after_seconds': afterSeconds, 'skill': skill});
}

class RulesScoring {
  const RulesScoring({required this.correct, required this.speed});

  RulesScoring.from(Map<String, dynamic> json)
      : correct = json['correct'] as int,
        speed = json['speed'] as int;

  final int correct;

  final int speed;

  Map<String, dynamic> toJson() => _fields({'correct': correct, 'speed': speed});
}

class Room {
  const Room({required this.queue, required this.settings, required this.code, required this.host, required this.players, required this.connected, required this.locked, required this.state});

  Room.from(Map<String, dynamic> json)
      : queue = json['queue'] as String,
        settings = Rules.from(json['settings'] as Map<String, dynamic>),
        code = json['code'] as String,
        host = json['host'] as String,
        players = _list(json['players'], (it) => Player.from(it as Map<String, dynamic>)),
        connected = _list(json['connected'], (it) => it as String),
        locked = json['locked'] as bool,
        state = json['state'] as String;

  final String queue;

  final Rules settings;

  final String code;

  final String host;

  final List<Player> players;

  final List<String> connected;

  final bool locked;

  final String state;

  Map<String, dynamic> toJson() => _fields({'queue': queue, 'settings': settings, 'code': code, 'host': host, 'players': players, 'connected': connected, 'locked': locked, 'state': state});
}

class ReportReceipt {
  const ReportReceipt({required this.id});

  ReportReceipt.from(Map<String, dynamic> json)
      : id = json['id'] as String;

  final String id;

  Map<String, dynamic> toJson() => _fields({'id': id});
}

class BlockList {
  const BlockList({required this.blocks});

  BlockList.from(Map<String, dynamic> json)
      : blocks = _list(json['blocks'], (it) => BlockListBlocks.from(it as Map<String, dynamic>));

  final List<BlockListBlocks> blocks;

  Map<String, dynamic> toJson() => _fields({'blocks': blocks});
}

class BlockListBlocks {
  const BlockListBlocks({required this.username, required this.blockedAt});

  BlockListBlocks.from(Map<String, dynamic> json)
      : username = json['username'] as String,
        blockedAt = json['blocked_at'] as int;

  final String username;

  /// Seconds since 1970.
  final int blockedAt;

  Map<String, dynamic> toJson() => _fields({'username': username, 'blocked_at': blockedAt});
}

class NewChallenge {
  const NewChallenge({required this.code, required this.expiresAt});

  NewChallenge.from(Map<String, dynamic> json)
      : code = json['code'] as String,
        expiresAt = json['expires_at'] as int;

  final String code;

  /// Seconds since 1970.
  final int expiresAt;

  Map<String, dynamic> toJson() => _fields({'code': code, 'expires_at': expiresAt});
}

class Challenge {
  const Challenge({required this.code, required this.queue, required this.owner, required this.expiresAt, required this.state, required this.players, this.rounds});

  Challenge.from(Map<String, dynamic> json)
      : code = json['code'] as String,
        queue = json['queue'] as String,
        owner = json['owner'] as String,
        expiresAt = json['expires_at'] as int,
        state = json['state'] as String,
        players = _list(json['players'], (it) => ChallengePlayers.from(it as Map<String, dynamic>)),
        rounds = _orNull(json['rounds'], (it) => _list(it, (it) => ChallengeRounds.from(it as Map<String, dynamic>)));

  final String code;

  final String queue;

  final String owner;

  /// Seconds since 1970.
  final int expiresAt;

  final String state;

  final List<ChallengePlayers> players;

  /// Present if the caller has played it.
  final List<ChallengeRounds>? rounds;

  Map<String, dynamic> toJson() => _fields({'code': code, 'queue': queue, 'owner': owner, 'expires_at': expiresAt, 'state': state, 'players': players, 'rounds': rounds});
}

class ChallengePlayers {
  const ChallengePlayers({required this.player, required this.state, this.score, this.rank});

  ChallengePlayers.from(Map<String, dynamic> json)
      : player = json['player'] as String,
        state = json['state'] as String,
        score = _orNull(json['score'], (it) => it as int),
        rank = _orNull(json['rank'], (it) => it as int);

  final String player;

  final String state;

  final int? score;

  /// Among those who have finished; equals share it.
  final int? rank;

  Map<String, dynamic> toJson() => _fields({'player': player, 'state': state, 'score': score, 'rank': rank});
}

/// Present if the caller has played it.
class ChallengeRounds {
  const ChallengeRounds({required this.text, required this.choices, required this.category, required this.difficulty, required this.correct, required this.answers});

  ChallengeRounds.from(Map<String, dynamic> json)
      : text = json['text'] as String,
        choices = _list(json['choices'], (it) => it as String),
        category = json['category'] as String,
        difficulty = json['difficulty'] as String,
        correct = json['correct'] as int,
        answers = _map(json['answers'], (it) => ChallengeRoundsAnswers.from(it as Map<String, dynamic>));

  final String text;

  final List<String> choices;

  final String category;

  final String difficulty;

  final int correct;

  final Map<String, ChallengeRoundsAnswers> answers;

  Map<String, dynamic> toJson() => _fields({'text': text, 'choices': choices, 'category': category, 'difficulty': difficulty, 'correct': correct, 'answers': answers});
}

class ChallengeRoundsAnswers {
  const ChallengeRoundsAnswers({required this.choice, required this.ms, required this.points});

  ChallengeRoundsAnswers.from(Map<String, dynamic> json)
      : choice = json['choice'] as int,
        ms = json['ms'] as int,
        points = json['points'] as int;

  final int choice;

  final int ms;

  final int points;

  Map<String, dynamic> toJson() => _fields({'choice': choice, 'ms': ms, 'points': points});
}

class ChallengeList {
  const ChallengeList({required this.challenges});

  ChallengeList.from(Map<String, dynamic> json)
      : challenges = _list(json['challenges'], (it) => Challenge.from(it as Map<String, dynamic>));

  final List<Challenge> challenges;

  Map<String, dynamic> toJson() => _fields({'challenges': challenges});
}

class Export {
  const Export({required this.user, required this.sessions, this.ban, required this.blocks, required this.reports, required this.games, required this.questionsSeen, required this.challenges});

  Export.from(Map<String, dynamic> json)
      : user = User.from(json['user'] as Map<String, dynamic>),
        sessions = _list(json['sessions'], (it) => ExportSessions.from(it as Map<String, dynamic>)),
        ban = _orNull(json['ban'], (it) => ExportBan.from(it as Map<String, dynamic>)),
        blocks = _list(json['blocks'], (it) => ExportBlocks.from(it as Map<String, dynamic>)),
        reports = _list(json['reports'], (it) => ExportReports.from(it as Map<String, dynamic>)),
        games = _list(json['games'], (it) => GameRecord.from(it as Map<String, dynamic>)),
        questionsSeen = _list(json['questions_seen'], (it) => it as String),
        challenges = _list(json['challenges'], (it) => Challenge.from(it as Map<String, dynamic>));

  final User user;

  final List<ExportSessions> sessions;

  final ExportBan? ban;

  final List<ExportBlocks> blocks;

  final List<ExportReports> reports;

  final List<GameRecord> games;

  final List<String> questionsSeen;

  final List<Challenge> challenges;

  Map<String, dynamic> toJson() => _fields({'user': user, 'sessions': sessions, 'ban': ban, 'blocks': blocks, 'reports': reports, 'games': games, 'questions_seen': questionsSeen, 'challenges': challenges});
}

class ExportSessions {
  const ExportSessions({required this.expiresAt});

  ExportSessions.from(Map<String, dynamic> json)
      : expiresAt = json['expires_at'] as int;

  /// Seconds since 1970.
  final int expiresAt;

  Map<String, dynamic> toJson() => _fields({'expires_at': expiresAt});
}

class ExportBan {
  const ExportBan({required this.untilMs, required this.reason});

  ExportBan.from(Map<String, dynamic> json)
      : untilMs = json['until_ms'] as int,
        reason = json['reason'] as String;

  final int untilMs;

  final String reason;

  Map<String, dynamic> toJson() => _fields({'until_ms': untilMs, 'reason': reason});
}

class ExportBlocks {
  const ExportBlocks({required this.username, required this.blockedAt});

  ExportBlocks.from(Map<String, dynamic> json)
      : username = json['username'] as String,
        blockedAt = json['blocked_at'] as int;

  final String username;

  /// Seconds since 1970.
  final int blockedAt;

  Map<String, dynamic> toJson() => _fields({'username': username, 'blocked_at': blockedAt});
}

class ExportReports {
  const ExportReports({required this.target, required this.reportedAt});

  ExportReports.from(Map<String, dynamic> json)
      : target = json['target'] as String,
        reportedAt = json['reported_at'] as int;

  final String target;

  /// Seconds since 1970.
  final int reportedAt;

  Map<String, dynamic> toJson() => _fields({'target': target, 'reported_at': reportedAt});
}

class Health {
  const Health({required this.status, this.version});

  Health.from(Map<String, dynamic> json)
      : status = json['status'] as String,
        version = _orNull(json['version'], (it) => it as String);

  final String status;

  final String? version;

  Map<String, dynamic> toJson() => _fields({'status': status, 'version': version});
}

// ---- messages ------------------------------------------------------------------------------------

/// What the server sends.
sealed class ServerMessage {
  const ServerMessage();

  /// Returns null for a type that is newer than this client.
  static ServerMessage? from(Map<String, dynamic> json) => switch (json['type']) {
        'queued' => QueuedMessage.from(json),
        'cancelled' => CancelledMessage.from(json),
        'room' => RoomMessage.from(json),
        'start' => StartMessage.from(json),
        'question' => QuestionMessage.from(json),
        'answered' => AnsweredMessage.from(json),
        'reveal' => RevealMessage.from(json),
        'update' => UpdateMessage.from(json),
        'user_exit' => UserExitMessage.from(json),
        'user_return' => UserReturnMessage.from(json),
        'end' => EndMessage.from(json),
        'rematch' => RematchMessage.from(json),
        'pong' => PongMessage.from(json),
        'notice' => NoticeMessage.from(json),
        'error' => ErrorMessage.from(json),
        'emoji' => EmojiMessage.from(json),
        _ => null,
      };
}

/// What a client sends.
sealed class ClientMessage {
  const ClientMessage();

  Map<String, dynamic> toJson();
}

/// The player waits in the queue.
class QueuedMessage extends ServerMessage {
  const QueuedMessage({required this.queue, required this.timeoutMs, this.delayMs});

  QueuedMessage.from(Map<String, dynamic> json)
      : queue = json['queue'] as String,
        timeoutMs = json['timeout_ms'] as int,
        delayMs = _orNull(json['delay_ms'], (it) => it as int);

  final String queue;

  /// Time until `cancelled` if no game is found.
  final int timeoutMs;

  /// Time until the player can be matched. Present after games that they left before anybody had
  /// answered.
  final int? delayMs;
}

/// The player is out of the queue or the room, or has left the game.
class CancelledMessage extends ServerMessage {
  const CancelledMessage({required this.queue, required this.reason});

  CancelledMessage.from(Map<String, dynamic> json)
      : queue = json['queue'] as String,
        reason = json['reason'] as String;

  final String queue;

  final String reason;
}

/// The private room that the player is in: the reply to `join`, and after each change. After `end`
/// the players are in their room again.
class RoomMessage extends ServerMessage {
  const RoomMessage({required this.code, required this.queue, required this.host, required this.players, required this.connected, required this.locked, required this.state, required this.settings});

  RoomMessage.from(Map<String, dynamic> json)
      : code = json['code'] as String,
        queue = json['queue'] as String,
        host = json['host'] as String,
        players = _list(json['players'], (it) => Player.from(it as Map<String, dynamic>)),
        connected = _list(json['connected'], (it) => it as String),
        locked = json['locked'] as bool,
        state = json['state'] as String,
        settings = Rules.from(json['settings'] as Map<String, dynamic>);

  /// Six letters and digits by which friends join.
  final String code;

  final String queue;

  /// A username.
  final String host;

  final List<Player> players;

  /// Usernames of the connected players.
  final List<String> connected;

  final bool locked;

  final String state;

  final Rules settings;
}

/// A game starts.
class StartMessage extends ServerMessage {
  const StartMessage({required this.game, required this.seq, required this.queue, required this.players, required this.rounds, required this.startsMs, this.totalMs, this.lives, this.series});

  StartMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        queue = json['queue'] as String,
        players = _list(json['players'], (it) => Player.from(it as Map<String, dynamic>)),
        rounds = json['rounds'] as int,
        startsMs = json['starts_ms'] as int,
        totalMs = _orNull(json['total_ms'], (it) => it as int),
        lives = _orNull(json['lives'], (it) => it as int),
        series = _orNull(json['series'], (it) => _map(it, (it) => it as int));

  final String game;

  /// Counts the messages of this game to this player: 1, 2, 3, ...
  final int seq;

  final String queue;

  final List<Player> players;

  final int rounds;

  /// Time until the first question.
  final int startsMs;

  /// With `total_seconds`: time left for all questions.
  final int? totalMs;

  /// With `lives`: how many lives are left.
  final int? lives;

  /// After a rematch; see there.
  final Map<String, int>? series;
}

/// A new question. Answers are accepted from now on.
class QuestionMessage extends ServerMessage {
  const QuestionMessage({required this.game, required this.seq, required this.round, required this.text, required this.choices, required this.category, required this.difficulty, required this.answerMs});

  QuestionMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        round = json['round'] as int,
        text = json['text'] as String,
        choices = _list(json['choices'], (it) => it as String),
        category = json['category'] as String,
        difficulty = json['difficulty'] as String,
        answerMs = json['answer_ms'] as int;

  final String game;

  final int seq;

  /// The number of the question, from 1.
  final int round;

  final String text;

  final List<String> choices;

  final String category;

  final String difficulty;

  /// Time left to answer.
  final int answerMs;
}

/// Another player has answered.
class AnsweredMessage extends ServerMessage {
  const AnsweredMessage({required this.game, required this.seq, required this.round, required this.player});

  AnsweredMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        round = json['round'] as int,
        player = json['player'] as String;

  final String game;

  final int seq;

  final int round;

  final String player;
}

/// The question is closed. Shows the right answer, all answers and the scores.
class RevealMessage extends ServerMessage {
  const RevealMessage({required this.game, required this.seq, required this.round, required this.correct, required this.answers, required this.scores, required this.revealMs, this.totalMs, this.lives});

  RevealMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        round = json['round'] as int,
        correct = json['correct'] as int,
        answers = _map(json['answers'], (it) => RevealMessageAnswers.from(it as Map<String, dynamic>)),
        scores = _map(json['scores'], (it) => it as int),
        revealMs = json['reveal_ms'] as int,
        totalMs = _orNull(json['total_ms'], (it) => it as int),
        lives = _orNull(json['lives'], (it) => it as int);

  final String game;

  final int seq;

  final int round;

  /// Index of the right choice.
  final int correct;

  /// By username. Players without an answer are missing.
  final Map<String, RevealMessageAnswers> answers;

  /// By username.
  final Map<String, int> scores;

  /// Time until the next question or the end.
  final int revealMs;

  final int? totalMs;

  final int? lives;
}

/// By username. Players without an answer are missing.
class RevealMessageAnswers {
  const RevealMessageAnswers({required this.choice, required this.points, required this.ms});

  RevealMessageAnswers.from(Map<String, dynamic> json)
      : choice = json['choice'] as int,
        points = json['points'] as int,
        ms = json['ms'] as int;

  final int choice;

  final int points;

  final int ms;

  Map<String, dynamic> toJson() => _fields({'choice': choice, 'points': points, 'ms': ms});
}

/// The whole game as this player sees it. It is the reply to `check`, the first message after a
/// reconnect, and tells that another player has taken the seat of a bot.
class UpdateMessage extends ServerMessage {
  const UpdateMessage({required this.game, required this.seq, required this.queue, required this.players, required this.connected, required this.rounds, required this.round, required this.phase, required this.leftMs, required this.scores, this.totalMs, this.lives, this.series, this.question, this.choice, this.answered, this.correct, this.answers});

  UpdateMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        queue = json['queue'] as String,
        players = _list(json['players'], (it) => Player.from(it as Map<String, dynamic>)),
        connected = _list(json['connected'], (it) => it as String),
        rounds = json['rounds'] as int,
        round = json['round'] as int,
        phase = json['phase'] as String,
        leftMs = json['left_ms'] as int,
        scores = _map(json['scores'], (it) => it as int),
        totalMs = _orNull(json['total_ms'], (it) => it as int),
        lives = _orNull(json['lives'], (it) => it as int),
        series = _orNull(json['series'], (it) => _map(it, (it) => it as int)),
        question = _orNull(json['question'], (it) => UpdateMessageQuestion.from(it as Map<String, dynamic>)),
        choice = _orNull(json['choice'], (it) => it as int),
        answered = _orNull(json['answered'], (it) => _list(it, (it) => it as String)),
        correct = _orNull(json['correct'], (it) => it as int),
        answers = json['answers'];

  final String game;

  /// The `seq` of the last message that this snapshot includes.
  final int seq;

  final String queue;

  final List<Player> players;

  /// Usernames of the connected players.
  final List<String> connected;

  final int rounds;

  /// 0 before the first question.
  final int round;

  final String phase;

  /// Time until this phase ends.
  final int leftMs;

  final Map<String, int> scores;

  final int? totalMs;

  final int? lives;

  final Map<String, int>? series;

  /// Present in the phases `question` and `reveal`, but not for a player who came after the
  /// question.
  final UpdateMessageQuestion? question;

  /// This player's answer to the question.
  final int? choice;

  /// Usernames of those who have answered it.
  final List<String>? answered;

  /// Present in the phase `reveal`: index of the right choice.
  final int? correct;

  /// Present in the phase `reveal`, in the same form as there.
  final Object? answers;
}

/// Present in the phases `question` and `reveal`, but not for a player who came after the question.
class UpdateMessageQuestion {
  const UpdateMessageQuestion({this.round, this.text, this.choices, this.category, this.difficulty});

  UpdateMessageQuestion.from(Map<String, dynamic> json)
      : round = _orNull(json['round'], (it) => it as int),
        text = _orNull(json['text'], (it) => it as String),
        choices = _orNull(json['choices'], (it) => _list(it, (it) => it as String)),
        category = _orNull(json['category'], (it) => it as String),
        difficulty = _orNull(json['difficulty'], (it) => it as String);

  final int? round;

  final String? text;

  final List<String>? choices;

  final String? category;

  final String? difficulty;

  Map<String, dynamic> toJson() => _fields({'round': round, 'text': text, 'choices': choices, 'category': category, 'difficulty': difficulty});
}

/// A player has left, or has lost the connection.
class UserExitMessage extends ServerMessage {
  const UserExitMessage({required this.game, required this.seq, required this.player, required this.returnsMs});

  UserExitMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        player = json['player'] as String,
        returnsMs = json['returns_ms'] as int;

  final String game;

  final int seq;

  final String player;

  /// The player can return within this time; 0: they have left.
  final int returnsMs;
}

/// A player has reconnected, or has joined a running game (`late_join`).
class UserReturnMessage extends ServerMessage {
  const UserReturnMessage({required this.game, required this.seq, required this.player});

  UserReturnMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        player = json['player'] as String;

  final String game;

  final int seq;

  final String player;
}

/// The game has ended.
class EndMessage extends ServerMessage {
  const EndMessage({required this.game, required this.seq, required this.reason, required this.ranking, this.rematchMs, this.series});

  EndMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        reason = json['reason'] as String,
        ranking = _list(json['ranking'], (it) => EndMessageRanking.from(it as Map<String, dynamic>)),
        rematchMs = _orNull(json['rematch_ms'], (it) => it as int),
        series = _orNull(json['series'], (it) => _map(it, (it) => it as int));

  final String game;

  final int seq;

  /// The operator has ended it: `stopped` counts, `void` does not.
  final String reason;

  final List<EndMessageRanking> ranking;

  /// With `rematch_seconds`: time to agree to play again.
  final int? rematchMs;

  /// See `rematch`.
  final Map<String, int>? series;
}

class EndMessageRanking {
  const EndMessageRanking({required this.player, required this.score, required this.rank, this.rating, this.ratingChange, this.provisional, this.bot, this.counts});

  EndMessageRanking.from(Map<String, dynamic> json)
      : player = json['player'] as String,
        score = json['score'] as int,
        rank = json['rank'] as int,
        rating = _orNull(json['rating'], (it) => it as int),
        ratingChange = _orNull(json['rating_change'], (it) => it as int),
        provisional = _orNull(json['provisional'], (it) => it as bool),
        bot = _orNull(json['bot'], (it) => it as bool),
        counts = _orNull(json['counts'], (it) => it as bool);

  final String player;

  final int score;

  /// From 1. Equal scores have the same rank.
  final int rank;

  /// The new rating. Only in rated queues.
  final int? rating;

  final int? ratingChange;

  /// Present, and true, while the rating is uncertain.
  final bool? provisional;

  /// Present, and true, if it is a bot.
  final bool? bot;

  /// Present, and false, if the game changes no field of this player. That is so if nobody has
  /// answered a question (such a game is not kept either), if a bot has played, or if the player
  /// has met all of these opponents too often today.
  final bool? counts;

  Map<String, dynamic> toJson() => _fields({'player': player, 'score': score, 'rank': rank, 'rating': rating, 'rating_change': ratingChange, 'provisional': provisional, 'bot': bot, 'counts': counts});
}

/// Who wants to play the last game again, after each change. When all do, `start` follows. At the
/// end of the time it follows for those who do, if they are enough.
class RematchMessage extends ServerMessage {
  const RematchMessage({required this.game, required this.players, required this.connected, required this.declined, required this.expiresMs, this.series});

  RematchMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        players = _list(json['players'], (it) => it as String),
        connected = _list(json['connected'], (it) => it as String),
        declined = _list(json['declined'], (it) => it as String),
        expiresMs = json['expires_ms'] as int,
        series = _orNull(json['series'], (it) => _map(it, (it) => it as int));

  /// The game that has ended.
  final String game;

  /// Usernames of those who have agreed.
  final List<String> players;

  /// Usernames of those who are connected.
  final List<String> connected;

  /// Usernames of those who are out: they declined or play elsewhere.
  final List<String> declined;

  /// Time left to agree; 0: there will be no rematch with this player.
  final int expiresMs;

  /// Of two players: the games that each has won of those in a row, by username.
  final Map<String, int>? series;
}

/// The reply to `ping`.
class PongMessage extends ServerMessage {
  const PongMessage({required this.serverMs, this.clientMs});

  PongMessage.from(Map<String, dynamic> json)
      : serverMs = json['server_ms'] as int,
        clientMs = _orNull(json['client_ms'], (it) => (it as num).toDouble());

  /// Time of the server, in ms since 1970.
  final int serverMs;

  final double? clientMs;
}

/// A message from the operator to all players.
class NoticeMessage extends ServerMessage {
  const NoticeMessage({required this.code, required this.text, required this.untilMs});

  NoticeMessage.from(Map<String, dynamic> json)
      : code = json['code'] as String,
        text = json['text'] as String,
        untilMs = json['until_ms'] as int;

  final String code;

  final String text;

  /// In ms since 1970: when the maintenance begins, or until when the message holds.
  final int untilMs;
}

/// A message was refused. The connection stays open.
class ErrorMessage extends ServerMessage {
  const ErrorMessage({required this.code, required this.message, this.id, this.errors});

  ErrorMessage.from(Map<String, dynamic> json)
      : code = json['code'] as String,
        message = json['message'] as String,
        id = json['id'],
        errors = json['errors'];

  /// A stable code, for programs.
  final String code;

  /// What was wrong and what was expected, for people.
  final String message;

  /// The `id` of the refused message.
  final Object? id;

  /// What is wrong, by field.
  final Object? errors;
}

/// Another player sent emoji.
class EmojiMessage extends ServerMessage {
  const EmojiMessage({required this.game, required this.seq, required this.player, required this.emoji});

  EmojiMessage.from(Map<String, dynamic> json)
      : game = json['game'] as String,
        seq = json['seq'] as int,
        player = json['player'] as String,
        emoji = json['emoji'] as String;

  final String game;

  final int seq;

  final String player;

  final String emoji;
}

/// The player's answer. Only the first answer to a question counts.
class AnswerFields extends ClientMessage {
  const AnswerFields({this.id, required this.round, required this.choice, this.game});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// The round of the question.
  final int round;

  /// Index into `choices`, from 0.
  final int choice;

  /// Optional: must be the id of the current game.
  final String? game;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'answer', 'id': id, 'round': round, 'choice': choice, 'game': game});
}

/// Asks for an `update`.
class CheckFields extends ClientMessage {
  const CheckFields({this.id});

  /// Repeated in an `error` about this message.
  final Object? id;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'check', 'id': id});
}

/// A reaction. The opponents see it.
class EmojiFields extends ClientMessage {
  const EmojiFields({this.id, required this.emoji});

  /// Repeated in an `error` about this message.
  final Object? id;

  final String emoji;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'emoji', 'id': id, 'emoji': emoji});
}

/// Asks for a `pong`, with which a client can measure the offset of its clock.
class PingFields extends ClientMessage {
  const PingFields({this.id, this.clientMs});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// The `pong` returns it unchanged.
  final double? clientMs;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'ping', 'id': id, 'client_ms': clientMs});
}

/// The player wants to play the last game again with the same players, or does not.
class RematchFields extends ClientMessage {
  const RematchFields({this.id, required this.accept});

  /// Repeated in an `error` about this message.
  final Object? id;

  final bool accept;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'rematch', 'id': id, 'accept': accept});
}

/// Joins a queue on the same WebSocket, after `end` or `cancelled`.
class JoinFields extends ClientMessage {
  const JoinFields({this.id, this.queue, this.code});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// Optional: a queue. Default: the previous one.
  final String? queue;

  /// Optional: the code of a private room or of a challenge, whose queue counts then. Without it, a
  /// queue with `match: room` opens a new room.
  final String? code;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'join', 'id': id, 'queue': queue, 'code': code});
}

/// Leaves the queue, the room, or the game for good.
class LeaveFields extends ClientMessage {
  const LeaveFields({this.id});

  /// Repeated in an `error` about this message.
  final Object? id;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'leave', 'id': id});
}

/// The player finds a question wrong. It is one of the game they are in, or of the last one, and
/// its answer was revealed. Each player counts once.
class FlagFields extends ClientMessage {
  const FlagFields({this.id, required this.round});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// The round of the question.
  final int round;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'flag', 'id': id, 'round': round});
}

/// The host of a room begins a game of all who are connected.
class BeginFields extends ClientMessage {
  const BeginFields({this.id});

  /// Repeated in an `error` about this message.
  final Object? id;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'begin', 'id': id});
}

/// The host sends a player away from the room, and out of its game. They can't come back.
class KickFields extends ClientMessage {
  const KickFields({this.id, required this.player});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// A username.
  final String player;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'kick', 'id': id, 'player': player});
}

/// The host lets no new player into the room, or lets them in again.
class LockFields extends ClientMessage {
  const LockFields({this.id, required this.locked});

  /// Repeated in an `error` about this message.
  final Object? id;

  final bool locked;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'lock', 'id': id, 'locked': locked});
}

/// The host makes another player the host.
class PassFields extends ClientMessage {
  const PassFields({this.id, required this.player});

  /// Repeated in an `error` about this message.
  final Object? id;

  /// A username.
  final String player;

  @override
  Map<String, dynamic> toJson() => _fields({'type': 'pass', 'id': id, 'player': player});
}

/// The codes of errors, over HTTP and in `error` messages.
const triviaErrorCodes = {'bad_request', 'bad_json', 'not_authenticated', 'bad_credentials', 'bad_id_token', 'bad_merge_token', 'bad_code', 'banned', 'wrong_password', 'sign_in_again', 'origin_refused', 'not_found', 'method_not_allowed', 'body_timeout', 'unknown_code', 'expired_code', 'already_reported', 'blocks_full', 'has_account', 'not_a_guest', 'identity_taken', 'in_game', 'provider_linked', 'last_sign_in', 'ambiguous', 'too_large', 'unsupported_media_type', 'invalid', 'app_too_old', 'upgrade_required', 'malformed_code', 'yourself', 'too_many_attempts', 'head_too_large', 'registration_closed', 'queue_closed', 'maintenance', 'no_mail', 'provider_unavailable', 'guests_full', 'reports_full', 'internal', 'unavailable', 'username_taken', 'email_taken', 'late_answer', 'already_answered', 'wrong_round', 'not_revealed', 'wrong_game', 'no_such_choice', 'not_playing', 'unknown_queue', 'queue_full', 'already_played', 'code_needed', 'own_challenge', 'challenge_played', 'challenge_full', 'room_full', 'room_locked', 'kicked', 'rematch_over', 'not_in_room', 'not_host', 'room_plays', 'too_few_players', 'no_such_player', 'not_text', 'too_fast', 'bad_message', 'unknown_type', 'invalid_message', 'wrong_state'};

/// The queues of the server.
const triviaQueues = ['random', 'rated', 'party', 'solo', 'daily', 'friends', 'challenge'];

/// Returns fields of a body or a message, without those that were left out.
Map<String, dynamic> _fields(Map<String, dynamic> fields) => fields..removeWhere((_, value) => value == null);

List<T> _list<T>(dynamic values, T Function(dynamic) read) => [for (final value in values as List) read(value)];

Map<String, T> _map<T>(dynamic values, T Function(dynamic) read) =>
    {for (final entry in (values as Map).entries) entry.key as String: read(entry.value)};

T? _orNull<T>(dynamic value, T Function(dynamic) read) => value == null ? null : read(value);

// ---- HTTP ----------------------------------------------------------------------------------------

/// An error of the server, or of the way to it (`status` 0, `code` "network").
class TriviaException implements Exception {
  const TriviaException(this.status, this.code, this.detail, {this.errors = const {}, this.retryAfter = 0, this.problem});

  final int status;
  final String code;
  final String detail;

  /// What is wrong, by field.
  final Map<String, List<String>> errors;

  /// Seconds to wait before another try; 0 if the server names none.
  final int retryAfter;

  /// All that the server says: `merge`, `guest` and `account` of `identity_taken`, the end of a ban.
  final Problem? problem;

  @override
  String toString() => '$code: $detail';
}

/// A player's account on a server. It is told the name of the app and its version, if they are given,
/// and may require a newer version.
class Trivia {
  Trivia(String url, {String? token, this.onToken, this.timeout = const Duration(seconds: 15), this.app})
      : url = url.replaceFirst(RegExp(r'/+$'), ''),
        _token = token;

  final String url;
  final Duration timeout;
  final ({String name, String version})? app;

  /// Gets each new token, to be kept, and null when the session has ended.
  final void Function(String? token)? onToken;
  final HttpClient _http = HttpClient();
  String? _token;

  String? get token => _token;

  /// Joins a queue, or resumes the game in progress.
  Play play(String queue, [JoinFields fields = const JoinFields()]) => Play._(this, queue, fields);

  /// Keeps the token of a session, or forgets it.
  void setToken(String? token) {
    if (token == _token) return;
    _token = token;
    onToken?.call(token);
  }

  /// Creates an account and signs in. It can be repeated if the reply was lost.
  Future<Session> register(NewUser body) async {
    final session = Session.from(await _request('POST', '/auth/register', body: body));
    setToken(session.token);
    return session;
  }

  /// Creates a guest, or signs in the same guest again (200).
  Future<Session> guest(Guest body) async {
    final session = Session.from(await _request('POST', '/auth/guest', body: body));
    setToken(session.token);
    return session;
  }

  /// Gives a guest an account. They keep everything, also their username if they send none.
  Future<Upgraded> upgrade(Upgrade body) async {
    return Upgraded.from(await _request('POST', '/auth/upgrade', body: body));
  }

  /// Mails a code for a new password, if the account exists and has an address.
  Future<void> recover(Recovery body) async {
    await _request('POST', '/auth/recover', body: body);
  }

  /// Sets a new password with a code, ends all sessions and signs in.
  Future<Session> reset(Reset body) async {
    final session = Session.from(await _request('POST', '/auth/reset', body: body));
    setToken(session.token);
    return session;
  }

  /// Sends a code that confirms an address: the caller's present address or a new one.
  Future<void> sendConfirmation(ConfirmationMail body) async {
    await _request('POST', '/auth/confirm/send', body: body);
  }

  /// Confirms the address that a code was sent to. It becomes the caller's.
  Future<void> confirm(Confirmation body) async {
    await _request('POST', '/auth/confirm', body: body);
  }

  /// Signs in.
  Future<Session> login(Login body) async {
    final session = Session.from(await _request('POST', '/auth/login', body: body));
    setToken(session.token);
    return session;
  }

  /// Ends this session.
  Future<void> logout() async {
    await _request('POST', '/auth/logout');
    setToken(null);
  }

  /// Ends all sessions of the caller, on every device.
  Future<void> endSessions() async {
    await _request('DELETE', '/auth/sessions');
    setToken(null);
  }

  /// Changes the password and ends all other sessions.
  Future<void> changePassword(PasswordChange body) async {
    await _request('POST', '/auth/password', body: body);
  }

  /// Returns the caller's account.
  Future<User> readMe() async {
    return User.from(await _request('GET', '/users/me'));
  }

  /// Changes fields of the caller's account. A new sign-in name takes the present password.
  Future<User> changeMe(UserChanges body) async {
    return User.from(await _request('PATCH', '/users/me', body: body));
  }

  /// Erases the caller's account and all personal data.
  Future<void> eraseMe(PasswordConfirmation body) async {
    await _request('DELETE', '/users/me', body: body);
    setToken(null);
  }

  /// Returns all data that is stored about the caller.
  Future<Export> exportMe() async {
    return Export.from(await _request('GET', '/users/me/export'));
  }

  /// Returns the caller's finished games, newest first.
  Future<GameList> myGames({int? limit, String? cursor}) async {
    return GameList.from(await _request('GET', '/users/me/games', query: {'limit': limit, 'cursor': cursor}));
  }

  /// Reports a player or a question to the operator, once each.
  Future<ReportReceipt> report(Report body) async {
    return ReportReceipt.from(await _request('POST', '/reports', body: body));
  }

  /// Returns the public fields of a player; 404 if caller or player has blocked the other.
  Future<Player> readUser(String username) async {
    return Player.from(await _request('GET', '/users/${Uri.encodeComponent(username)}'));
  }

  /// Blocks a player: neither meets the other in a queue, or gets messages of the other.
  Future<void> blockUser(String username) async {
    await _request('PUT', '/users/${Uri.encodeComponent(username)}/block');
  }

  /// Lifts the caller's block of a player, if there is one.
  Future<void> liftBlock(String username) async {
    await _request('DELETE', '/users/${Uri.encodeComponent(username)}/block');
  }

  /// Returns the players whom the caller has blocked, the latest first.
  Future<BlockList> myBlocks() async {
    return BlockList.from(await _request('GET', '/users/me/blocks'));
  }

  /// Returns a finished game of the caller with all its rounds.
  Future<GameRecord> readGame(String id) async {
    return GameRecord.from(await _request('GET', '/games/${Uri.encodeComponent(id)}'));
  }

  /// Returns a page of a leaderboard, highest value first.
  Future<Leaderboard> readLeaderboard(String name, {int? limit, int? offset, String? around}) async {
    return Leaderboard.from(await _request('GET', '/leaderboards/${Uri.encodeComponent(name)}', query: {'limit': limit, 'offset': offset, 'around': around}));
  }

  /// Returns the queues: their rules, and how many players wait and play.
  Future<QueueList> readQueues() async {
    return QueueList.from(await _request('GET', '/queues'));
  }

  /// Makes a challenge, which the caller and their friends play by its code.
  Future<NewChallenge> makeChallenge(ChallengeQueue body) async {
    return NewChallenge.from(await _request('POST', '/challenges', body: body));
  }

  /// Returns the challenges that the caller has made or played, open and finished ones.
  Future<ChallengeList> myChallenges() async {
    return ChallengeList.from(await _request('GET', '/challenges'));
  }

  /// Returns a challenge, with its rounds once the caller has played it.
  Future<Challenge> readChallenge(String code) async {
    return Challenge.from(await _request('GET', '/challenges/${Uri.encodeComponent(code)}'));
  }

  /// Returns a private room, for the preview of a link to it.
  Future<Room> readRoom(String code) async {
    return Room.from(await _request('GET', '/rooms/${Uri.encodeComponent(code)}'));
  }

  /// Tells that the process answers, and its version.
  Future<Health> live() async {
    return Health.from(await _request('GET', '/health/live'));
  }

  /// Tells whether the server can serve players: Redis answers and no restart is under way.
  Future<Health> ready() async {
    return Health.from(await _request('GET', '/health/ready'));
  }

  Future<dynamic> _request(String method, String path, {Map<String, Object?> query = const {}, Object? body}) async {
    final sent = token;
    final int status;
    final String text;
    final HttpHeaders headers;
    try {
      final request = await _http.openUrl(method, Uri.parse(url + path + _query(query))).timeout(timeout);
      request.headers.set('Accept', 'application/json');
      if (app case final app?) {
        request.headers.set('X-App', app.name);
        request.headers.set('X-Version', app.version);
      }
      if (sent != null) request.headers.set('Authorization', 'Bearer $sent');
      if (body != null) {
        request.headers.contentType = ContentType('application', 'json');
        request.add(utf8.encode(jsonEncode(body)));
      }
      final response = await request.close().timeout(timeout);
      status = response.statusCode;
      headers = response.headers;
      text = await response.transform(utf8.decoder).join().timeout(timeout);
    } on Exception catch (error) {
      throw TriviaException(0, 'network', 'no answer from $url: $error');
    }
    if (status >= 200 && status < 300) return text.isEmpty ? null : jsonDecode(text);
    final problem = _problem(status, text, headers);
    if (problem.code == 'not_authenticated' && sent == token) setToken(null);
    throw problem;
  }

  TriviaException _problem(int status, String text, HttpHeaders headers) {
    final retryAfter = int.tryParse(headers.value('Retry-After') ?? '') ?? 0;
    try {
      final problem = Problem.from(jsonDecode(text) as Map<String, dynamic>);
      final errors = problem.errors ?? const {};
      return TriviaException(status, problem.code, problem.detail,
          errors: errors, retryAfter: retryAfter, problem: problem);
    } on Object {
      // A proxy in front may answer in a form of its own.
      return TriviaException(status, 'internal', 'the server answered $status', retryAfter: retryAfter);
    }
  }
}

String _query(Map<String, Object?> values) {
  final pairs = [
    for (final entry in values.entries)
      if (entry.value != null) '${entry.key}=${Uri.encodeComponent('${entry.value}')}'
  ];
  return pairs.isEmpty ? '' : '?${pairs.join('&')}';
}

// ---- play ----------------------------------------------------------------------------------------

/// What is known of the connection.
sealed class Link {
  const Link();
}

class Connecting extends Link {
  const Connecting();
}

class Online extends Link {
  const Online();
}

/// The next try comes after this time.
class Waiting extends Link {
  const Waiting(this.pause);

  final Duration pause;
}

class Closed extends Link {
  const Closed(this.reason, [this.detail = '']);

  final CloseReason reason;

  /// What the server says of it; for `outdated`, the address of a new version.
  final String detail;
}

/// Why a connection is closed for good.
enum CloseReason {
  /// The game or the wait for one has ended, or `close` was called. `join` connects again.
  done,

  /// The session has ended. Sign in again.
  signedOut,

  /// The player plays on another device.
  replaced,

  /// The player may not play.
  banned,

  /// The app is too old.
  outdated,

  /// The server does not understand this client, or has no such queue.
  refused,
}

/// What happens. `settle`: the result is being computed.
enum Phase { none, queued, start, question, reveal, settle, end, cancelled }

class Answer {
  const Answer(this.choice, this.points, this.ms);

  final int choice;
  final int points;
  final int ms;
}

class QuestionView {
  const QuestionView(this.round, this.text, this.choices, this.category, this.difficulty);

  final int round;
  final String text;
  final List<String> choices;
  final String category;
  final String difficulty;
}

/// The game as this player knows it.
class Game {
  Game([this.phase = Phase.none, this.id = '']);

  Phase phase;
  final String id;
  List<Player> players = const [];
  int rounds = 0;
  int round = 0;
  QuestionView? question;

  /// This player's answer to the question: an index into its choices.
  int? choice;

  /// The right choice, once it is revealed.
  int? correct;

  /// Usernames of others who have answered.
  List<String> answered = [];

  /// All answers, once they are revealed.
  Map<String, Answer> answers = const {};
  Map<String, int> scores = const {};

  /// Usernames of players without a connection.
  Set<String> away = {};
  EndMessage? end;
  String reason = '';
}

const _final = {
  1008: CloseReason.refused,
  4400: CloseReason.refused,
  4401: CloseReason.signedOut,
  4403: CloseReason.banned,
  4409: CloseReason.replaced,
  4413: CloseReason.refused,
  4426: CloseReason.outdated,
};
const _restart = 1012;
const _busy = {1013, 4429};
const _connectTime = Duration(seconds: 10); // for a handshake
const _silence = Duration(seconds: 20); // after which a `ping` asks whether the connection is alive
const _replyTime = Duration(seconds: 8); // in which anything must arrive after a `ping`
const _maxPauseMs = 15000;
const _busyPauseMs = 6000;
const _retryAnswer = Duration(milliseconds: 500);

/// A player's connection to the game. It reconnects by itself, and misses nothing.
class Play {
  Play._(this._trivia, this._queue, this._joinFields) {
    _connect();
  }

  final Trivia _trivia;
  final _random = Random();
  final _clock = Stopwatch()..start();
  final _messages = StreamController<ServerMessage>.broadcast();
  final _changes = StreamController<Game>.broadcast();
  final _links = StreamController<Link>.broadcast();
  String _queue;
  JoinFields _joinFields;
  WebSocket? _socket;
  int _attempt = 0; // tells what an older connection still says
  Timer? _timer;
  Timer? _alive;
  bool _wanted = true; // whether a lost connection is made again
  int _failures = 0;
  bool _joined = false; // whether the server has answered to the fields of the join
  int _seq = 0;
  bool _checking = false; // an `update` is on its way
  ({String game, int round, int choice})? _unsure;
  int _sent = 0;
  int _deadlineMs = 0;

  /// The game as this player knows it. It is brought up to date before listeners are called.
  Game game = Game();

  /// The private room that the player is in: who is its host, who is there, whether it is locked.
  RoomMessage? room;
  Link link = const Connecting();

  Stream<ServerMessage> get messages => _messages.stream;

  /// The game after each change of it or of the connection: draw it anew.
  Stream<Game> get changes => _changes.stream;
  Stream<Link> get links => _links.stream;

  /// The time until the phase ends.
  Duration get left => Duration(milliseconds: max(0, _deadlineMs - _clock.elapsedMilliseconds));

  /// Answers the open question. It arrives once, also when the connection breaks meanwhile.
  void answer(int choice) {
    if (game.phase != Phase.question || game.choice != null) return;
    game.choice = choice;
    _unsure = (game: game.id, round: game.round, choice: choice);
    _sendAnswer();
    _changes.add(game);
  }

  /// Joins a queue, after `end` or `cancelled`. Without a name it is the previous one.
  void join({String? queue, JoinFields fields = const JoinFields()}) {
    _queue = queue ?? _queue;
    _joinFields = fields;
    _joined = false;
    _wanted = true;
    if (!_sendNow({...fields.toJson(), 'queue': _queue})) _reconnect(0);
  }

  /// Leaves the queue, or the game for good.
  void leave() => send(const LeaveFields());

  /// A reaction. The opponents see it.
  void emoji(EmojiFields message) => send(message);

  /// The player wants to play the last game again with the same players, or does not.
  void rematch(RematchFields message) => send(message);

  /// The player finds a question wrong. It is one of the game they are in, or of the last one, and
  /// its answer was revealed. Each player counts once.
  void flag(FlagFields message) => send(message);

  /// The host of a room begins a game of all who are connected.
  void begin(BeginFields message) => send(message);

  /// The host sends a player away from the room, and out of its game. They can't come back.
  void kick(KickFields message) => send(message);

  /// The host lets no new player into the room, or lets them in again.
  void lock(LockFields message) => send(message);

  /// The host makes another player the host.
  void pass(PassFields message) => send(message);

  /// Sends a message. Without a connection it is dropped; `update` then shows the true state.
  void send(ClientMessage message) => _sendNow(message.toJson());

  /// Closes the connection. The seat in a game is kept for a while; `join` returns to it.
  void close() => _end(CloseReason.done);

  /// Call it when the app comes back from the background, or the network does.
  void wake() {
    if (!_wanted) return;
    _socket != null ? _probe() : _reconnect(0);
  }

  // -- connection

  Future<void> _connect() async {
    _timer?.cancel();
    _drop();
    final token = _trivia.token;
    if (token == null) return _end(CloseReason.signedOut);
    final attempt = _attempt;
    final join = _joined ? <String, Object?>{} : _joinFields.toJson()
      ..remove('type')
      ..remove('queue');
    final fields = room == null ? join : <String, Object?>{'code': room!.code};
    if (_trivia.app case final app?) fields.addAll({'app': app.name, 'version': app.version});
    final address = '${_trivia.url}/game/${Uri.encodeComponent(_queue)}${_query(fields)}';
    _setLink(const Connecting());
    final WebSocket socket;
    try {
      final protocols = [triviaProtocol, 'bearer.$token'];
      final url = address.replaceFirst('http', 'ws');
      socket = await WebSocket.connect(url, protocols: protocols).timeout(_connectTime);
    } on Exception {
      return _lost(attempt, 0, token);
    }
    if (attempt != _attempt) return unawaited(socket.close());
    _socket = socket;
    _checking = false;
    socket.listen(
      (data) => attempt == _attempt ? _receive('$data') : null,
      onError: (_) => _lost(attempt, 0, token),
      onDone: () => _lost(attempt, socket.closeCode ?? 0, token, socket.closeReason ?? ''),
    );
    _setLink(const Online());
    _watch();
  }

  /// Lets go of the socket, so that nothing it still says is heard.
  void _drop() {
    _attempt += 1;
    _alive?.cancel();
    final socket = _socket;
    _socket = null;
    if (socket != null) unawaited(socket.close());
  }

  void _lost(int attempt, int code, String? token, [String detail = '']) {
    if (attempt != _attempt) return;
    _drop();
    final reason = _final[code];
    if (reason == CloseReason.signedOut && token == _trivia.token) _trivia.setToken(null);
    if (reason != null) return _end(reason, detail);
    if (!_wanted) return _end(CloseReason.done);
    _failures += 1;
    if (code == _restart && _failures == 1) return _reconnect(0);
    final grown = min(_maxPauseMs, 250 << min(_failures, 10));
    final pause = _busy.contains(code) ? max(grown, _busyPauseMs) : grown;
    _reconnect((pause * (0.5 + _random.nextDouble() / 2)).round()); // so that not all phones come at once
  }

  void _reconnect(int pauseMs) {
    _timer?.cancel();
    if (pauseMs == 0) return unawaited(_connect());
    final pause = Duration(milliseconds: pauseMs);
    _setLink(Waiting(pause));
    _timer = Timer(pause, _connect);
  }

  void _end(CloseReason reason, [String detail = '']) {
    _timer?.cancel();
    _drop();
    _wanted = false;
    _setLink(Closed(reason, detail));
  }

  /// Asks whether the connection is alive when nothing was heard for a while.
  void _watch() {
    _alive?.cancel();
    _alive = Timer(_silence, _probe);
  }

  void _probe() {
    final attempt = _attempt;
    _sendNow({'type': 'ping'});
    _alive?.cancel();
    _alive = Timer(_replyTime, () => _lost(attempt, 0, null));
  }

  bool _sendNow(Map<String, dynamic> fields) {
    final socket = _socket;
    if (socket == null) return false;
    socket.add(jsonEncode(fields));
    return true;
  }

  void _setLink(Link link) {
    this.link = link;
    _links.add(link);
    _changes.add(game);
  }

  // -- messages

  void _receive(String text) {
    _watch();
    _failures = 0;
    _joined = true;
    final json = jsonDecode(text) as Map<String, dynamic>;
    final message = ServerMessage.from(json);
    if (message == null) return;
    final seq = json['seq'];
    if (seq is int && _isStale(message, json['game'] as String, seq)) return;
    if (message is ErrorMessage && _repairs(message, json['id'])) return;
    _apply(message);
    _messages.add(message);
    _changes.add(game);
  }

  /// Tells whether a message brings nothing new. After a gap it asks for the whole state.
  bool _isStale(ServerMessage message, String id, int seq) {
    final known = id == game.id ? _seq : 0;
    if (message is UpdateMessage) {
      _checking = false;
      if (seq < known) return true;
    } else {
      if (seq <= known) return true;
      if (seq > known + 1 && !_checking) _checking = _sendNow({'type': 'check'});
    }
    _seq = seq;
    if (id != game.id) game = Game(Phase.none, id);
    return false;
  }

  void _sendAnswer() {
    final unsure = _unsure;
    if (unsure == null) return;
    _sent += 1;
    final (:game, :round, :choice) = unsure;
    _sendNow({'type': 'answer', 'game': game, 'round': round, 'choice': choice, 'id': _sent});
  }

  void _apply(ServerMessage message) {
    switch (message) {
      case QueuedMessage():
        room = null;
        game = Game(Phase.queued);
        _setDeadline(message.timeoutMs);
      case CancelledMessage():
        game.phase = Phase.cancelled;
        game.reason = message.reason;
        room = null;
        _wanted = false;
      case RoomMessage():
        room = message;
        _wanted = true;
      case StartMessage():
        game.phase = Phase.start;
        game.rounds = message.rounds;
        game.players = message.players;
        game.scores = {for (final player in message.players) player.username: 0};
        _setDeadline(message.startsMs);
      case QuestionMessage():
        _unsure = null;
        game.phase = Phase.question;
        game.round = message.round;
        game.question =
            QuestionView(message.round, message.text, message.choices, message.category, message.difficulty);
        game.choice = null;
        game.correct = null;
        game.answered = [];
        game.answers = const {};
        _setDeadline(message.answerMs);
      case AnsweredMessage():
        if (message.round == game.round) game.answered.add(message.player);
      case RevealMessage():
        _unsure = null;
        game.phase = Phase.reveal;
        game.correct = message.correct;
        game.answers = message.answers.map((name, one) => MapEntry(name, Answer(one.choice, one.points, one.ms)));
        game.scores = message.scores;
        _setDeadline(message.revealMs);
      case UpdateMessage():
        _applyUpdate(message);
      case UserExitMessage():
        game.away.add(message.player);
      case UserReturnMessage():
        game.away.remove(message.player);
      case EndMessage():
        _unsure = null;
        _wanted = room != null;
        game.phase = Phase.end;
        game.reason = message.reason;
        game.end = message;
      default:
        break;
    }
  }

  void _applyUpdate(UpdateMessage update) {
    final now = Game(Phase.values.byName(update.phase), update.game);
    final shown = update.question;
    now.players = update.players;
    now.rounds = update.rounds;
    now.round = update.round;
    if (shown != null) {
      now.question = QuestionView(shown.round ?? 0, shown.text ?? '', shown.choices ?? const [],
          shown.category ?? '', shown.difficulty ?? '');
    }
    now.choice = update.choice;
    now.correct = update.correct;
    now.answered = [...?update.answered];
    now.answers = _orNull(update.answers, (all) => _map(all, _answer)) ?? const {};
    now.scores = update.scores;
    now.away = {for (final player in update.players) player.username}..removeAll(update.connected);
    game = now;
    _wanted = true;
    _setDeadline(update.leftMs);
    final lost = _unsure;
    final isOpen = now.phase == Phase.question && now.choice == null;
    if (!isOpen || lost == null || lost.game != now.id || lost.round != now.round) {
      _unsure = null;
      return;
    }
    game.choice = lost.choice; // it was lost on the way: the server knows of none
    _sendAnswer();
  }

  Answer _answer(dynamic json) => Answer(json['choice'] as int, json['points'] as int, json['ms'] as int);

  /// Handles an error about the answer. Returns whether the app need not know.
  bool _repairs(ErrorMessage error, Object? id) {
    final unsure = _unsure;
    if (unsure == null || id != _sent) return false;
    if (error.code == 'already_answered') return true; // it had arrived before
    if (error.code == 'unavailable') {
      Timer(_retryAnswer, () => _unsure == unsure ? _sendAnswer() : null);
      return true;
    }
    _unsure = null;
    game.choice = null;
    return false;
  }

  void _setDeadline(int ms) => _deadlineMs = _clock.elapsedMilliseconds + ms;
}
