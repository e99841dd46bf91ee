<?php
// Writes a word to the database and to the cache, by their names, and tells what it read back.
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
header('Content-Type: application/json');
$word = $_GET['word'] ?? '';
try {
    $db = mysqli_init();
    $db->options(MYSQLI_OPT_CONNECT_TIMEOUT, 2);
    $db->real_connect('db', 'shop', trim(file_get_contents('/run/secrets/db-password')), 'shop');
    $db->query('create table if not exists words (word varchar(64) primary key)');
    $db->prepare('replace into words values (?)')->execute([$word]);
    $row = $db->prepare('select word from words where word = ?');
    $row->execute([$word]);

    $cache = new Redis();
    $cache->connect('cache', 6379, 2.0);
    $cache->set("word:$word", $word);

    echo json_encode([
        'row' => $row->get_result()->fetch_column(),
        'key' => $cache->get("word:$word"),
        'client' => $_SERVER['REMOTE_ADDR'],
        'php' => gethostname(),
    ]);
} catch (Throwable $error) {
    http_response_code(503);
    echo json_encode(['error' => $error->getMessage()]);
}
