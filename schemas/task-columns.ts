// By itself, because planning needs the values and not TypeBox, which takes longer to load than a spec to validate.

/** Columns of a file of questions, unless it is said that they are called otherwise. */
export const TASK_COLUMNS = {
  id: 'id',
  question: 'question',
  answer: 'answer',
  aliases: 'aliases',
  gold_ids: 'gold_doc_ids',
  deny_urls: 'deny_urls',
  capability: 'capability',
} as const;
